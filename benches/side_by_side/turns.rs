//! Rounds of turns, in alternation, each with a limit.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Handle;

use crate::report::{Quantity, Results, Turn};
use crate::rivals::Rivals;
use crate::servers::Server;

/// A server whose turn takes longer than this is not asked for the work in further rounds: such
/// turns differ from the others by more than noise.
const SLOW: Duration = Duration::from_secs(12);

const PARTS: [&str; 7] = ["warm", "tls", "beside", "cold", "push", "memory", "pull"];

/// What is to be measured, and what came out.
pub struct Run {
    only: Option<String>,
    pub rounds: usize,
    pub turn: Duration,
    pub record: bool,
    pub rivals: Rivals,
    /// Where the scripted upstreams run.
    pub upstreams: Handle,
    pub results: Results,
}

impl Run {
    pub fn from_arguments(upstreams: &Handle) -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |flag: &str| {
            let at = arguments.iter().position(|argument| argument == flag)?;
            Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{flag} wants a value")))
        };
        let whole = |flag: &str, default| {
            value(flag)
                .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{flag} wants a number")))
        };
        let only = value("--only").cloned();
        let record = arguments.iter().any(|argument| argument == "--record");
        assert!(!record || only.is_none(), "a part is not recorded: README's table is of one run");
        Self {
            only,
            rounds: whole("--rounds", 3).max(1) as usize,
            turn: Duration::from_secs(whole("--turn", 2).max(1)),
            record,
            rivals: Rivals::build(),
            upstreams: upstreams.clone(),
            results: Results::default(),
        }
    }

    /// Whether a work of this part is selected. A part's name selects nothing of the other parts.
    pub fn takes(&self, part: &str, work: &str) -> bool {
        let Some(only) = &self.only else { return true };
        if PARTS.contains(&only.as_str()) { only == part } else { work.contains(only) }
    }

    /// The selected ones of a part's works.
    pub fn select<W: Named>(&self, part: &Part, works: impl IntoIterator<Item = W>) -> Vec<W> {
        works.into_iter().filter(|work| self.takes(part.name, &work.name())).collect()
    }
}

pub struct Part {
    pub name: &'static str,
    /// What a turn takes at most with its beginning and its end.
    pub limit: Duration,
    /// What all turns take at most.
    pub whole: Duration,
}

/// A work or a server. Its name is a heading of a table.
pub trait Named {
    fn name(&self) -> String;
}

/// Measures every work on every server, a round after the other, and prints what came out. `None` is
/// a work that is not for that server.
pub async fn alternate<W: Named, S: Named>(
    run: &mut Run,
    part: &Part,
    works: &[W],
    servers: &[S],
    measure: impl AsyncFn(&W, &S) -> Option<Turn>,
) {
    let end = Instant::now() + part.whole;
    let mut done = HashSet::new();
    let hook = quiet();
    'rounds: for round in 1..=run.rounds {
        eprintln!("{}, round {round} of {}", part.name, run.rounds);
        for work in works {
            for server in servers {
                let (work_name, server_name, begun) = (work.name(), server.name(), Instant::now());
                let this = (work_name.clone(), server_name.clone());
                if done.contains(&this) {
                    continue;
                }
                if begun >= end {
                    eprintln!("{}: the time is over, the rest is left out", part.name);
                    break 'rounds;
                }
                let measured = bounded(part.limit, measure(work, server)).await.unwrap_or_else(|failure| {
                    eprintln!("{work_name}, {server_name}: {failure}");
                    Some(Turn::new())
                });
                if measured.is_none() || begun.elapsed() > SLOW {
                    done.insert(this);
                }
                if let Some(turn) = measured {
                    run.results.add(part.name, &work_name, &server_name, turn);
                }
            }
        }
    }
    std::panic::set_hook(hook);
    let names: Vec<String> = works.iter().map(W::name).collect();
    print!("{}", run.results.print(part.name, &names));
}

type Hook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Sync + Send>;

/// A server that fails is a result; a line about it is enough.
fn quiet() -> Hook {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("  {}", panic.to_string().lines().nth(1).unwrap_or("a failure without a reason"));
    }));
    hook
}

/// `work`'s result, or how it came to none.
pub async fn bounded<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err("fails".to_owned()),
        Err(_) => Err(format!("no end in {:.0} s", limit.as_secs_f64())),
    }
}

/// What a server spent.
pub struct Cost {
    pub cpu: f64,
    peak_mib: f64,
}

impl Cost {
    /// `figures` with the peak of memory.
    pub fn turn<const N: usize>(&self, figures: [(Quantity, f64); N]) -> Turn {
        figures.into_iter().chain([(Quantity::Peak, self.peak_mib)]).collect()
    }
}

/// `work`'s result, and what `server` spent meanwhile.
pub async fn watched<T>(server: &Server, work: impl Future<Output = T>) -> (T, Cost) {
    server.reset_peak();
    let before = server.cpu_seconds();
    let result = work.await;
    (result, Cost { cpu: server.cpu_seconds() - before, peak_mib: server.peak_mib() })
}
