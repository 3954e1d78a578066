//! Whether what a request costs, and the start, stay the same however much is held.
//!
//! `cargo bench --bench held -- growth [DIRECTORY] [--most N] [--asked N] [--record]`: 10 to 1,000,000 blobs (or N) in
//! one repository, and 1 to 10,000 repositories (or a tenth of N). All servers run at once and are measured in turn, so
//! that what else the machine does meets them alike. 21 GiB of disk for all of it, 9 GiB where blocks are of 1 KiB;
//! trees that DIRECTORY has are used again. `--record` draws `benches/held/growth.svg`.
//!
//! Asked for are at most 20 images (or N), spread over all that is held. With more of them a request costs more, however
//! little is held beside: the processor's caches do not have them any more.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::plot;
use crate::server::{Server, wait};
use crate::tree::{Image, Shape};

const STARTS: usize = 7;
const ROUNDS: usize = 9;
const REQUESTS: usize = 10_000;
pub const WORKS: [&str; 3] = ["manifest GET by tag", "manifest GET by digest", "blob GET, 10 KiB"];

/// Nothing is evicted, and nothing runs beside the requests.
const CONFIGURATION: &str = r#"
[cache]
max_size = "1TiB"
min_free = "0B"
[freshness]
others = "300days"
[gc]
interval = "off"
[scrub]
interval = "off"
"#;

/// What there is more and more of.
struct Kind {
    name: &'static str,
    sizes: &'static [usize],
    shape: Shape,
    /// How much of it an image is.
    of_image: usize,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "blobs",
        sizes: &[10, 100, 1_000, 10_000, 100_000, 1_000_000],
        shape: Shape { blobs_of_image: 9, images_of_repository: usize::MAX, largest: 10 << 10 },
        of_image: 10,
    },
    Kind {
        name: "repositories",
        sizes: &[1, 10, 100, 1_000, 10_000],
        shape: Shape { blobs_of_image: 3, images_of_repository: 1, largest: 10 << 10 },
        of_image: 1,
    },
];

/// The growth of one kind.
pub struct Series {
    pub name: &'static str,
    pub points: Vec<Point>,
}

/// What one size came to.
pub struct Point {
    pub size: usize,
    /// Until it had answered its first request.
    pub start: Duration,
    /// Until it knew all that is held.
    pub whole: Duration,
    pub memory_kib: u64,
    /// Microseconds of the server's CPU time for a request of each of `WORKS`.
    pub costs: [f64; WORKS.len()],
}

pub fn run(mut arguments: impl Iterator<Item = String>) {
    let scratch = tempfile::tempdir().expect("a directory for the trees");
    let (mut directory, mut record) = (scratch.path().join("trees"), false);
    let (mut most, mut asked) = (1_000_000, 20);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--most" => most = number(arguments.next()),
            "--asked" => asked = number(arguments.next()),
            "--record" => record = true,
            _ => directory = PathBuf::from(argument),
        }
    }
    let configuration = scratch.path().join("forebay.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();

    let series = KINDS.map(|kind| {
        let most = if kind.name == "blobs" { most } else { most / 10 };
        let sizes = kind.sizes.iter().filter(|size| **size <= most.max(kind.sizes[0]));
        let mut trees: Vec<Tree> = sizes.map(|size| Tree::make(&directory, &kind, *size, asked)).collect();
        let series = Series { name: kind.name, points: measure(&mut trees, &configuration) };
        series.print();
        series
    });
    if record {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/held/growth.svg");
        std::fs::write(path, plot::draw(&series)).unwrap();
    }
}

fn number(argument: Option<String>) -> usize {
    argument.and_then(|number| number.parse().ok()).filter(|number| *number > 0).expect("a number")
}

struct Tree {
    data: PathBuf,
    size: usize,
    entries: usize,
    /// Some images of it.
    asked: Vec<Image>,
}

impl Tree {
    fn make(directory: &Path, kind: &Kind, size: usize, asked: usize) -> Self {
        let (data, begun) = (directory.join(format!("{}-{size}", kind.name)), Instant::now());
        let images = size / kind.of_image;
        let entries = kind.shape.make(&data, images);
        println!("{size} {} made in {:.1?}", kind.name, begun.elapsed());
        let asked = asked.min(images);
        let asked = (0..asked).map(|at| kind.shape.image(at * images / asked)).collect();
        Self { data, size, entries, asked }
    }

    fn paths(&self, work: usize) -> Vec<String> {
        let path = [Image::tag_path, Image::manifest_path, Image::largest_path][work];
        self.asked.iter().map(path).collect()
    }
}

fn measure(trees: &mut [Tree], configuration: &Path) -> Vec<Point> {
    let starts = in_turn(trees, STARTS, |tree| {
        let (path, begun) = (tree.asked[0].tag_path(), Instant::now());
        let server = Server::start(&tree.data, Some(configuration));
        wait(|| server.serves(&path));
        begun.elapsed().as_secs_f64()
    });
    let running: Vec<(Server, Duration)> = trees
        .iter()
        .map(|tree| {
            let begun = Instant::now();
            let server = Server::start(&tree.data, Some(configuration));
            server.wait_until_whole();
            assert_eq!(server.metric("forebay_store_entries"), Some(tree.entries as f64));
            (server, begun.elapsed())
        })
        .collect();
    let costs = [0, 1, 2].map(|work| {
        let loads = running.iter().zip(trees.iter());
        let loads = loads.map(|((server, _), tree)| (server, Load::new(server.address, &tree.paths(work))));
        let mut loads: Vec<(&Server, Load)> = loads.collect();
        for (_, load) in &mut loads {
            load.all();
            load.some(REQUESTS / 10);
        }
        in_turn(&mut loads, ROUNDS, |(server, load)| {
            let before = server.cpu();
            let asked = load.some(REQUESTS);
            server.cpu_since(&before).as_secs_f64() * 1e6 / asked as f64
        })
    });
    let points = trees.iter().zip(&running).enumerate();
    let point = |(at, (tree, (server, whole))): (usize, (&Tree, &(Server, Duration)))| Point {
        size: tree.size,
        start: Duration::from_secs_f64(starts[at]),
        whole: *whole,
        memory_kib: server.memory(),
        costs: [0, 1, 2].map(|work| costs[work][at]),
    };
    points.map(point).collect()
}

/// The median of some rounds for each, in which each has its turn.
fn in_turn<T>(of: &mut [T], rounds: usize, mut measure: impl FnMut(&mut T) -> f64) -> Vec<f64> {
    let mut all = vec![Vec::new(); of.len()];
    for _ in 0..rounds {
        for (one, measured) in of.iter_mut().zip(&mut all) {
            measured.push(measure(one));
        }
    }
    let median = |mut measured: Vec<f64>| {
        measured.sort_by(f64::total_cmp);
        measured[measured.len() / 2]
    };
    all.into_iter().map(median).collect()
}

impl Series {
    /// In brackets: how much it is of that of the smallest.
    fn print(&self) {
        print!("\n{:>12}{:>20}{:>10}{:>8}", self.name, "start, ms", "whole, s", "MiB");
        WORKS.iter().for_each(|work| print!("{:>27}", format!("{work}, us")));
        println!();
        let smallest = &self.points[0];
        let beside = |figure: f64, smallest: f64| format!("{figure:.1} ({:.2})", figure / smallest);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        for point in &self.points {
            let start = beside(ms(point.start), ms(smallest.start));
            let (whole, mib) = (point.whole.as_secs_f64(), point.memory_kib / 1024);
            print!("{:>12}{start:>20}{whole:>10.2}{mib:>8}", point.size);
            for (cost, smallest) in point.costs.iter().zip(smallest.costs) {
                print!("{:>27}", beside(*cost, smallest));
            }
            println!();
        }
    }
}
