//! What is told of a request, in the form of CNCF distribution's notifications.

use std::time::SystemTime;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::oci::{Digest, MediaType, Repository, Tag};

/// Longest text of a client's that an event holds.
const TEXT_MAX: usize = 256;

/// What happened to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Push,
    /// Only what had to be fetched: a hit is no news.
    Pull,
    Delete,
    Mount,
}

impl Action {
    pub const ALL: [Self; 4] = [Self::Push, Self::Pull, Self::Delete, Self::Mount];

    pub fn text(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Delete => "delete",
            Self::Mount => "mount",
        }
    }
}

/// What it happened to. `repository` is the name by which it is pulled here, a mirrored one's with
/// its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub repository: String,
    pub media_type: Option<String>,
    pub digest: Option<Digest>,
    pub size: Option<u64>,
    pub tag: Option<Tag>,
    /// Where a mounted blob comes from.
    pub from: Option<String>,
    /// Empty where nothing is there any more. A path until [`Event::new`] puts the base before it.
    pub url: String,
}

impl Target {
    pub fn manifest(
        repository: &Repository,
        digest: &Digest,
        media_type: &MediaType,
        size: u64,
        tag: Option<&Tag>,
    ) -> Self {
        Self {
            media_type: Some(media_type.as_str().to_owned()),
            size: Some(size),
            tag: tag.cloned(),
            url: format!("/v2/{repository}/manifests/{digest}"),
            ..Self::removed(repository, digest)
        }
    }

    pub fn blob(repository: &Repository, digest: &Digest, size: Option<u64>) -> Self {
        Self {
            media_type: Some("application/octet-stream".to_owned()),
            size,
            url: format!("/v2/{repository}/blobs/{digest}"),
            ..Self::removed(repository, digest)
        }
    }

    /// The same blob, mounted from there.
    pub fn mounted_from(self, from: &Repository) -> Self {
        Self { from: Some(from.to_string()), ..self }
    }

    /// A manifest or a blob that is gone.
    pub fn removed(repository: &Repository, digest: &Digest) -> Self {
        Self { digest: Some(*digest), ..Self::of(repository) }
    }

    /// A tag that is gone.
    pub fn untagged(repository: &Repository, tag: &Tag) -> Self {
        Self { tag: Some(tag.clone()), ..Self::of(repository) }
    }

    fn of(repository: &Repository) -> Self {
        Self {
            repository: repository.to_string(),
            media_type: None,
            digest: None,
            size: None,
            tag: None,
            from: None,
            url: String::new(),
        }
    }
}

/// The request that made it happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub id: String,
    /// The client's address, with its port where no proxy stands between.
    pub addr: String,
    pub host: String,
    pub method: String,
    pub useragent: String,
}

/// Something that happened, on behalf of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub action: Action,
    pub target: Target,
    /// Who is logged in; None: nobody.
    pub actor: Option<String>,
    pub request: Origin,
}

impl Event {
    /// `base` is what clients write before `/v2/`.
    pub fn new(
        action: Action,
        target: Target,
        base: &str,
        actor: Option<String>,
        mut request: Origin,
    ) -> Self {
        let url = if target.url.is_empty() { String::new() } else { format!("{base}{}", target.url) };
        for text in [&mut request.id, &mut request.host, &mut request.useragent] {
            shorten(text);
        }
        let actor = actor.map(|mut actor| {
            shorten(&mut actor);
            actor
        });
        Self { action, target: Target { url, ..target }, actor, request }
    }
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
        text.truncate(end);
    }
}

/// The process that tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    addr: String,
    #[serde(rename = "instanceID")]
    instance_id: String,
}

impl Source {
    /// This process, by its machine's name, its port and an id that no other start has.
    pub fn of_process(port: u16) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { addr: format!("{host}:{port}"), instance_id: Uuid::new_v4().to_string() }
    }
}

/// An event as it is sent, however often.
#[derive(Debug)]
pub struct Record {
    pub id: Uuid,
    pub time: SystemTime,
    pub event: Event,
}

/// The body of a notification.
pub fn envelope<'a>(records: impl Iterator<Item = &'a Record>, source: &Source) -> Vec<u8> {
    let events = records.map(|record| Line::of(record, source)).collect();
    // Structs of texts and numbers: nothing in them can fail to be written.
    serde_json::to_vec(&Envelope { events }).unwrap_or_default()
}

#[derive(Serialize)]
struct Envelope<'a> {
    events: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: Text,
    timestamp: String,
    action: Action,
    target: TargetLine<'a>,
    request: &'a Origin,
    actor: Actor<'a>,
    source: &'a Source,
}

/// Written as text, without a feature of its own.
struct Text(Uuid);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TargetLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// The same as `size`: older receivers read this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    repository: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_repository: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record, source: &'a Source) -> Self {
        let Event { action, target, actor, request } = &record.event;
        let target = TargetLine {
            media_type: target.media_type.as_deref(),
            size: target.size,
            digest: target.digest.map(|digest| digest.to_string()),
            length: target.size,
            repository: &target.repository,
            from_repository: target.from.as_deref(),
            url: &target.url,
            tag: target.tag.as_ref().map(Tag::as_str),
        };
        Self {
            id: Text(record.id),
            timestamp: humantime::format_rfc3339_nanos(record.time).to_string(),
            action: *action,
            target,
            request,
            actor: Actor { name: actor.as_deref() },
            source,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::oci::Owner;
    use serde_json::{Value, json};

    const DIGEST: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    pub fn repository(name: &str) -> Repository {
        Repository { owner: Owner::Hosted, name: name.parse().unwrap() }
    }

    pub fn event(action: Action, target: Target) -> Event {
        let origin = Origin {
            id: "1-2".into(),
            addr: "192.0.2.7:4711".into(),
            host: "hub.example".into(),
            method: "PUT".into(),
            useragent: "test/1".into(),
        };
        Event::new(action, target, "https://hub.example/reg", None, origin)
    }

    fn told(event: Event) -> Value {
        let record = Record { id: Uuid::new_v4(), time: SystemTime::UNIX_EPOCH, event };
        let source = Source { addr: "node:5000".into(), instance_id: "here".into() };
        let body = envelope([&record].into_iter(), &source);
        let mut envelope: Value = serde_json::from_slice(&body).unwrap();
        let mut event = envelope["events"][0].take();
        let id = event.as_object_mut().unwrap().remove("id").unwrap();
        assert_eq!(id, record.id.to_string());
        event
    }

    /// The shape that CNCF distribution was seen to send, field for field.
    #[test]
    fn an_event_has_the_shape_of_cncf_distribution() {
        let (app, digest) = (repository("corp.internal/app"), DIGEST.parse().unwrap());
        let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
        let tag = "v1".parse().unwrap();
        let target = Target::manifest(&app, &digest, &media_type, 392, Some(&tag));
        let pushed = Event { actor: Some("alice".into()), ..event(Action::Push, target) };
        let expected = json!({
            "timestamp": "1970-01-01T00:00:00.000000000Z",
            "action": "push",
            "target": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "size": 392,
                "digest": DIGEST,
                "length": 392,
                "repository": "corp.internal/app",
                "url": format!("https://hub.example/reg/v2/corp.internal/app/manifests/{DIGEST}"),
                "tag": "v1",
            },
            "request": {
                "id": "1-2", "addr": "192.0.2.7:4711", "host": "hub.example", "method": "PUT", "useragent": "test/1",
            },
            "actor": { "name": "alice" },
            "source": { "addr": "node:5000", "instanceID": "here" },
        });
        assert_eq!(told(pushed), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let (app, digest) = (repository("app"), DIGEST.parse().unwrap());
        let target = |action, target| told(event(action, target))["target"].take();
        assert_eq!(
            target(Action::Delete, Target::removed(&app, &digest)),
            json!({ "digest": DIGEST, "repository": "app" })
        );
        assert_eq!(
            target(Action::Delete, Target::untagged(&app, &"v1".parse().unwrap())),
            json!({ "tag": "v1", "repository": "app" })
        );
        let mounted = Target::blob(&app, &digest, Some(5)).mounted_from(&repository("base"));
        let expected = json!({
            "mediaType": "application/octet-stream", "size": 5, "length": 5, "digest": DIGEST, "repository": "app",
            "fromRepository": "base", "url": format!("https://hub.example/reg/v2/app/blobs/{DIGEST}"),
        });
        assert_eq!(target(Action::Mount, mounted), expected);
        assert_eq!(told(event(Action::Pull, Target::blob(&app, &digest, None)))["actor"], json!({}));
    }

    #[test]
    fn a_clients_texts_are_bounded() {
        let target = Target::of(&repository("app"));
        let mut origin = event(Action::Pull, target.clone()).request;
        origin.useragent = "\u{e9}".repeat(60_000);
        let event = Event::new(Action::Pull, target, "http://h", Some("a".repeat(300)), origin);
        assert_eq!(event.request.useragent.chars().count(), TEXT_MAX);
        assert_eq!(event.actor.unwrap().len(), TEXT_MAX);
    }
}
