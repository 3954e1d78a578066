//! The page at `/`: what runs here, how its upstreams fare, how to use it. No scripts, no assets.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::access::External;
use crate::metrics::{Face, Kind, Label, Metrics, Outcome};
use crate::mirror::Mirror;
use crate::store::Trouble;
use crate::telemetry::size;
use crate::upstream::{LeakState, Purpose, QuotaState};

/// An upstream's host and quota.
pub type Upstream = (String, QuotaState);

/// Since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Manifests and blobs asked of the mirror by outcome, in the order of [`Outcome::ALL`].
    pub requests: Vec<(&'static str, u64)>,
    pub sent_bytes: u64,
    pub connections: i64,
    pub fills: i64,
}

/// The mirror's upstreams, sorted by host.
pub fn upstreams(mirror: &Mirror) -> Vec<Upstream> {
    let mut upstreams: Vec<_> =
        mirror.upstreams().iter().map(|(host, upstream)| (host.to_string(), upstream.quota())).collect();
    upstreams.sort_by(|(one, _), (other, _)| one.cmp(other));
    upstreams
}

pub fn totals(metrics: &Metrics) -> Totals {
    let requests = |outcome: Outcome| {
        let counts =
            [Kind::Manifest, Kind::Blob].map(|kind| metrics.request(Face::Mirror, kind, outcome).get());
        (outcome.text(), counts.iter().sum())
    };
    Totals {
        requests: Outcome::ALL.iter().map(|outcome| requests(*outcome)).collect(),
        sent_bytes: Kind::ALL.iter().map(|kind| metrics.sent_bytes.cell(*kind).get()).sum(),
        connections: metrics.connections.get(),
        fills: metrics.fills_in_flight.get(),
    }
}

/// `images` is where clients find them, `prefix` what stands before the paths of this listener. Like
/// all text that is not ours, they are escaped.
pub fn render(
    images: &External,
    prefix: &str,
    upstreams: &[Upstream],
    totals: &Totals,
    trouble: Option<&Trouble>,
    now: SystemTime,
) -> String {
    let (base, authority, prefix) = (escape(&images.base()), escape(&images.authority), escape(prefix));
    // The name of an image has no place for a path in front of /v2/.
    let by_name = if images.prefix.is_empty() {
        let pulls = upstreams.iter().map(|(host, _)| {
            let image = if host == "docker.io" { "library/alpine" } else { "owner/image" };
            format!("docker pull {authority}/{}/{image}", escape(host))
        });
        let pulls: Vec<String> = pulls.chain([format!("docker push {authority}/myapp:1.0")]).collect();
        format!("<p>By name, and images of your own:</p>\n<pre>{}</pre>", pulls.join("\n"))
    } else {
        String::new()
    };
    let mut hosts_toml = String::new();
    for (host, _) in upstreams {
        let _ = write!(
            hosts_toml,
            "# /etc/containerd/certs.d/{0}/hosts.toml\nserver = \"https://{1}\"\n",
            escape(host),
            if host == "docker.io" { "registry-1.docker.io".to_owned() } else { escape(host) }
        );
        let _ = write!(hosts_toml, "[host.\"{base}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    }
    let mut rows = String::new();
    for (host, quota) in upstreams {
        let _ = write!(rows, "<tr><td>{}</td><td>{}", escape(host), escape(&told(quota, now)));
        if let Some(leak) = &quota.leak {
            let _ = write!(rows, "<br><strong>{}</strong>", escape(&leaking(leak)));
        }
        rows.push_str("</td></tr>");
    }
    let disk = trouble.map(|trouble| format!("<p><strong>{}</strong></p>\n", escape(&degraded(trouble))));
    let mut counts = String::new();
    for (outcome, count) in &totals.requests {
        let _ = write!(counts, "<tr><td>manifests and blobs: {}</td><td>{count}</td></tr>", escape(outcome));
    }
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Forebay</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
td, th {{ border-bottom: 1px solid #ccc; padding: .2em 1em .2em 0; text-align: left; }}
pre {{ background: #f3f3f3; padding: .7em; overflow: auto; color: #111; }}
</style>
</head>
<body>
<h1>Forebay {version}</h1>
{disk}<h2>Upstreams</h2>
<table><tr><th>Registry</th><th>Quota</th></tr>{rows}</table>
<h2>Since the start</h2>
<table>{counts}
<tr><td>sent to clients</td><td>{sent}</td></tr>
<tr><td>open connections</td><td>{connections}</td></tr>
<tr><td>blobs being fetched</td><td>{fills}</td></tr>
</table>
<h2>How to use it</h2>
<p>Docker, for images of Docker Hub, in <code>/etc/docker/daemon.json</code>:</p>
<pre>{{ "registry-mirrors": ["{base}"] }}</pre>
<p>containerd:</p>
<pre>{hosts_toml}</pre>
<p>Every other client: <code>forebay client-config --help</code>.</p>
{by_name}
<p><a href="{prefix}/metrics">Metrics</a></p>
</body>
</html>
"#,
        disk = disk.unwrap_or_default(),
        version = env!("CARGO_PKG_VERSION"),
        sent = size(totals.sent_bytes),
        connections = totals.connections,
        fills = totals.fills,
    )
}

/// What a disk in trouble means, in a line.
pub fn degraded(trouble: &Trouble) -> String {
    format!(
        "degraded since {}: {trouble}. Until then what is held is served, what is not is passed on without being kept, \
         and pushes are refused",
        humantime::format_rfc3339_seconds(trouble.since)
    )
}

/// A quota in words.
fn told(quota: &QuotaState, now: SystemTime) -> String {
    let mut text = match (quota.remaining, quota.limit) {
        (Some(remaining), Some(limit)) => format!("{remaining} of {limit} pulls left"),
        (Some(remaining), None) => format!("{remaining} pulls left"),
        (None, Some(limit)) => format!("{limit} pulls"),
        (None, None) => "none stated".to_owned(),
    };
    // Writing to a String does not fail, here and below.
    if let Some(window) = quota.window {
        let _ = write!(text, " in {}", humantime::format_duration(window));
    }
    if let Some(paused) = quota.paused_for {
        let _ = write!(text, "; paused for {} s", paused.as_secs());
    }
    if let Some(ends) = quota.window_ends {
        let _ = write!(text, "; all of them again in {} at the latest", until(ends, now));
    }
    if let Some(exhausted) = quota.exhausted {
        let _ = write!(text, "; none left in {} at the present rate", until(exhausted, now));
    }
    let held_back = match quota.held_back {
        Some(Purpose::Background) => "background work waits",
        Some(Purpose::Revalidation) => "background work waits, and what is held is served unconfirmed",
        Some(Purpose::Miss | Purpose::Priority) => "what is left is for priority clients and pinned images",
        None => "",
    };
    if !held_back.is_empty() {
        let _ = write!(text, "; {held_back}");
    }
    if quota.saved > 0 {
        let _ = write!(text, "; {} pulls saved since the start", quota.saved);
    }
    text
}

/// In whole minutes, or seconds where it is less.
fn until(at: SystemTime, now: SystemTime) -> String {
    let seconds = at.duration_since(now).unwrap_or_default().as_secs();
    let rounded = if seconds < 60 { seconds } else { seconds.next_multiple_of(60) };
    humantime::format_duration(Duration::from_secs(rounded)).to_string()
}

fn leaking(leak: &LeakState) -> String {
    let source = leak.source.as_deref().map(|source| format!(" ({source})")).unwrap_or_default();
    let mut text = format!(
        "{} pulls were spent past this mirror: somebody behind the same address, or with the same login{source}, asks \
         the registry directly.",
        leak.pulls
    );
    if !leak.silent.is_empty() {
        let _ = write!(text, " Asked here before and do not any more: {}.", leak.silent.join(", "));
    }
    text
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::DiskState;

    fn external(authority: &str, prefix: &str) -> External {
        External { tls: true, authority: authority.into(), prefix: prefix.into() }
    }

    #[test]
    fn nothing_from_outside_is_taken_as_html() {
        let evil = external("<script>alert('1')</script>\"&", "");
        let upstreams = [("<b>".to_owned(), QuotaState::default())];
        let page = render(&evil, "", &upstreams, &Totals::default(), None, SystemTime::now());
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
    }

    #[test]
    fn quotas_and_totals_are_told() {
        let metrics = Metrics::new();
        metrics.request(Face::Mirror, Kind::Blob, Outcome::Miss).inc_by(41);
        metrics.request(Face::Mirror, Kind::Manifest, Outcome::Miss).inc();
        metrics.request(Face::Mirror, Kind::Tags, Outcome::Miss).inc();
        metrics.request(Face::Registry, Kind::Manifest, Outcome::Miss).inc();
        metrics.request(Face::Operations, Kind::Other, Outcome::Hit).inc();
        metrics.sent_bytes.cell(Kind::Blob).inc_by(12345);
        let totals = totals(&metrics);
        assert!(totals.requests.contains(&("miss", 42)) && totals.requests.contains(&("hit", 0)));
        let now = SystemTime::now();
        let quota = QuotaState {
            limit: Some(100),
            remaining: Some(7),
            window: Some(Duration::from_secs(21600)),
            paused_for: Some(Duration::from_secs(61)),
            window_ends: Some(now + Duration::from_secs(3601)),
            exhausted: Some(now + Duration::from_secs(59)),
            held_back: Some(Purpose::Revalidation),
            saved: 93,
            leak: Some(LeakState {
                pulls: 12,
                source: Some("192.0.2.1".to_owned()),
                silent: vec!["ci-7".to_owned(), "<i>".to_owned()],
            }),
        };
        let page =
            render(&external("mirror.test", ""), "", &[("docker.io".to_owned(), quota)], &totals, None, now);
        for part in [
            "7 of 100 pulls left in 6h; paused for 61 s; all of them again in 1h 1m at the latest; none left in 59s at \
             the present rate; background work waits, and what is held is served unconfirmed; 93 pulls saved",
            "<strong>12 pulls were spent past this mirror",
            "(192.0.2.1)",
            "not any more: ci-7, &lt;i&gt;.",
            "manifests and blobs: miss</td><td>42<",
            "12.0 KiB",
            r#""registry-mirrors": ["https://mirror.test"]"#,
            "docker pull mirror.test/docker.io/library/alpine",
            "# /etc/containerd/certs.d/docker.io/hosts.toml",
            "href=\"/metrics\"",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let (state, why) = (DiskState::Full, "No <space> left".into());
        let full = Trouble { state, why, since: SystemTime::UNIX_EPOCH };
        let page = render(&external("proxy.test", "/reg"), "/reg", &[], &totals, Some(&full), now);
        for part in [
            "\"https://proxy.test/reg\"",
            "href=\"/reg/metrics\"",
            "<strong>degraded since 1970-01-01T00:00:00Z: the disk is full (No &lt;space&gt; left): make room",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        assert!(!page.contains("docker pull"), "{page}");
    }
}
