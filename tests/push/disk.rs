//! A registry whose disk is full: real clients are told, and give up.

use super::support::clients::Skopeo;
use super::support::hosting::Hosting;
use super::support::image::Image;
use super::support::namespace::isolated;
use super::support::process::{attempt, command, run};
use super::support::pushers::{Buildah, Pusher};

#[test]
fn clients_give_up_on_a_full_disk_and_push_once_there_is_room() {
    isolated(async |directory| {
        let data = directory.join("forebay/data");
        std::fs::create_dir_all(&data).unwrap();
        run(command("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", data.to_str().unwrap()])).await;
        let registry = Hosting::forebay(&directory.join("forebay"), "").await;
        let glutton = data.join("glutton");
        assert!(std::fs::write(&glutton, vec![0; 16 << 20]).is_err());

        let layout = directory.join("layout");
        Image::random(1, 1, 100_000).write_layout(&layout, "1");
        let skopeo = Skopeo::new(&directory.join("skopeo"), "");
        let buildah = Buildah::new(&directory.join("buildah"));
        let (one, other) = (format!("{}/one:1", registry.host()), format!("{}/other:1", registry.host()));
        skopeo.load(&layout, &one).await;
        buildah.load(&layout, &other).await;
        for pushing in [skopeo.pushing(&one), buildah.pushing(&other)] {
            let said = attempt(pushing).await.unwrap_err();
            assert!(said.contains("507 Insufficient Storage"), "{said}");
        }
        std::fs::remove_file(glutton).unwrap();
        skopeo.push(&one).await;
        buildah.push(&other).await;
        assert_eq!(registry.repository("one").tags(None).await, ["1"]);
    });
}
