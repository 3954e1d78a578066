//! The one place that knows status codes: every failure as an error of the distribution API.
//!
//! A 401 is sent where a login is asked for: at hosted repositories and, at the hosts that are for
//! logging in, at `/v2/`, once there is authentication. Never at what is mirrored, unless `auth.mirror`
//! says so: dockerd would answer it with its password for Docker Hub. But where an upstream has `private =
//! "per-caller"`, that password is what is asked for: see [`super::callers`]. Upstream's own 401 becomes
//! a 403.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::body::Payload;
use super::owners::UnknownName;
use super::respond::{self, header_value};
use crate::answer;
use crate::metrics::{Kind, Outcome};
use crate::oci::{InvalidDigest, InvalidReference, Owner, Repository};
use crate::registry::{Interrupted, PushError};
use crate::upstream::{PROXY_STATUS, loop_status};

/// When a push is tried again that there was no room for.
const PUSH_AGAIN: Duration = Duration::from_secs(30);

/// Error codes (OCI distribution-spec, "Error Codes", and those of CNCF distribution beyond it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    /// The same of an upload that another request works on.
    UploadBusy,
    /// The same of a body that does not come.
    UploadStalled,
    Denied,
    DigestInvalid,
    /// A request that has been here before, on its way through other Forebays. Not a 5xx: the one that
    /// asks is in good health, and so is this one.
    Loop,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    RangeInvalid,
    SizeInvalid,
    TagInvalid,
    TooManyRequests,
    TooManyTags,
    /// A request that is malformed in a way that has no code of its own.
    Invalid,
    Unauthorized,
    Unavailable,
    /// The same of a disk that takes nothing. docker, podman and skopeo show no more of a 5xx than its
    /// status, and of these podman and crane try this one only once.
    NotKept,
    Unknown,
    /// A method that is not served at this path.
    Unsupported,
    /// A path at which nothing is served.
    NoEndpoint,
    /// An upstream that is not configured.
    UpstreamUnknown,
}

impl Code {
    fn text(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid | Self::UploadBusy | Self::UploadStalled => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::Loop => "LOOP_DETECTED",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid | Self::ManifestTooLarge => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown | Self::UpstreamUnknown => "NAME_UNKNOWN",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid | Self::TooManyTags => "TAG_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unavailable | Self::NotKept => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::Unsupported | Self::NoEndpoint | Self::Invalid => "UNSUPPORTED",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::NameInvalid
            | Self::DigestInvalid
            | Self::BlobUploadInvalid
            | Self::Loop
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::SizeInvalid
            | Self::TagInvalid
            | Self::Invalid
            | Self::PaginationNumberInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::UploadBusy => StatusCode::CONFLICT,
            Self::UploadStalled => StatusCode::REQUEST_TIMEOUT,
            Self::ManifestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyTags => StatusCode::URI_TOO_LONG,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::UpstreamUnknown
            | Self::NoEndpoint => StatusCode::NOT_FOUND,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotKept => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// A request that gets no content, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    message: Cow<'static, str>,
    /// What a client may do instead, or when.
    headers: Vec<(header::HeaderName, HeaderValue)>,
    /// Whether something is wrong, or the request as it is cannot be served.
    pub outcome: Outcome,
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let outcome = match code {
            Code::Unavailable | Code::NotKept | Code::Unknown => Outcome::Error,
            _ => Outcome::Refused,
        };
        Self { code, message: message.into(), headers: Vec::new(), outcome }
    }

    /// A method that is not served here, where `allowed` are.
    pub fn method(message: String, allowed: &'static str) -> Self {
        Self::new(Code::Unsupported, message).with(header::ALLOW, HeaderValue::from_static(allowed))
    }

    fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The client has used up its share.
    pub fn too_many(retry_after: Duration) -> Self {
        let seconds = whole_seconds(retry_after);
        let message = format!("this client sends too many requests; try again in {seconds} s");
        Self::new(Code::TooManyRequests, message).retry_after(retry_after)
    }

    /// A login is missing or wrong; `challenge` says how to log in.
    pub fn unauthorized(message: String, challenge: HeaderValue) -> Self {
        Self::new(Code::Unauthorized, message).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// A client has shown so many wrong passwords that this one is not looked at.
    pub fn too_many_failures(retry_after: Duration) -> Self {
        let seconds = whole_seconds(retry_after);
        let message = format!("too many logins of this client were refused; try again in {seconds} s");
        Self::new(Code::TooManyRequests, message).retry_after(retry_after)
    }

    /// So many passwords are being checked that this one has to wait.
    pub fn logins_busy() -> Self {
        let message = "too many logins at once; try again in a second";
        Self::new(Code::TooManyRequests, message).retry_after(Duration::from_secs(1))
    }

    /// The store cannot be used. Of a mirrored blob that is a 404, as in [`Self::of_content`].
    pub fn not_ready(kind: Kind, repository: Option<&Repository>) -> Self {
        let code = if is_mirrored_blob(kind, repository) { Code::BlobUnknown } else { Code::Unavailable };
        Self::new(code, "the store cannot be used yet: see the server's log").fault()
    }

    /// Of an upstream that is not configured: says which ones are.
    pub fn among(self, configured: impl FnOnce() -> Vec<String>) -> Self {
        if self.code != Code::UpstreamUnknown {
            return self;
        }
        match configured().as_slice() {
            [] => self,
            known => {
                let message = format!("{}; configured are {}", self.message, known.join(", "));
                Self { message: message.into(), ..self }
            }
        }
    }

    fn retry_after(self, after: Duration) -> Self {
        self.with(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)))
    }

    fn fault(self) -> Self {
        Self { outcome: Outcome::Error, ..self }
    }

    /// Why the mirror or the hosted registry has no answer.
    ///
    /// A 5xx for a blob stalls dockerd for 75 s before it turns to Docker Hub, so a mirrored blob
    /// that cannot be had is a 404. A hosted one is nowhere else: there a 404 would lie.
    pub fn of_content(error: &answer::Error, kind: Kind, repository: &Repository) -> Self {
        use answer::Error;
        let hosted = repository.owner == Owner::Hosted;
        let mirrored_blob = is_mirrored_blob(kind, Some(repository));
        let message = error.to_string();
        match error {
            Error::NotFound(subject) if hosted => Self::new(unknown(kind), not_hosted(subject, repository)),
            Error::NotFound(subject) => Self::new(unknown(kind), not_upstream(subject)),
            Error::Offline(_) => Self::new(unknown(kind), message),
            Error::Denied { .. } | Error::LoginNeeded { .. } => Self::new(Code::Denied, message),
            Error::UpstreamLimited { retry_after, .. } => {
                Self::new(Code::TooManyRequests, message).retry_after(*retry_after).fault()
            }
            Error::ClientLimited { retry_after, .. } | Error::HeldBack { retry_after, .. } => {
                Self::new(Code::TooManyRequests, message).retry_after(*retry_after)
            }
            Error::Unavailable { .. } | Error::Unproven { .. } | Error::Disk { .. } if mirrored_blob => {
                Self::new(Code::BlobUnknown, message).fault()
            }
            Error::Unavailable { .. } | Error::Unproven { .. } => Self::new(Code::Unavailable, message),
            Error::Loop(why) => {
                // For the Forebay that asked.
                let told = loop_status(why).map(|told| (HeaderName::from_static(PROXY_STATUS), told));
                Self { headers: told.into_iter().collect(), ..Self::new(Code::Loop, message) }
            }
            Error::Unfit { .. } => Self::new(unknown(kind), message),
            Error::Disk { .. } => Self::new(Code::Unknown, message),
            Error::Origin { .. } => Self::new(Code::NameUnknown, message).fault(),
            Error::Range { size } => {
                let outside = header_value(format!("bytes */{size}"));
                Self::new(Code::RangeInvalid, message).with(header::CONTENT_RANGE, outside)
            }
        }
    }

    /// Why an upload does not take what was sent: the answer says where it stands.
    pub fn of_upload(error: &PushError, location: &str) -> Self {
        let refused = Self::from(error);
        match error {
            PushError::OutOfOrder { received, .. }
            | PushError::Length { received, .. }
            | PushError::Interrupted { received, .. } => refused
                .with(header::LOCATION, header_value(location.to_owned()))
                .with(header::RANGE, respond::received_range(*received)),
            _ => refused,
        }
    }

    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// Tells the operator of what is not the client's doing.
    pub fn log(&self, path: &str) {
        if self.outcome == Outcome::Error {
            tracing::warn!(path, status = self.status().as_u16(), "{}", self.message);
        }
    }

    /// The answer, with the error body of the specification.
    pub fn response(self) -> Response<Payload> {
        let status = self.status();
        let body = json!({"errors": [{"code": self.code.text(), "message": self.message, "detail": null}]});
        let mut response = Response::new(Payload::Full(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

fn is_mirrored_blob(kind: Kind, repository: Option<&Repository>) -> bool {
    kind == Kind::Blob && repository.is_some_and(|repository| repository.owner != Owner::Hosted)
}

fn unknown(kind: Kind) -> Code {
    match kind {
        Kind::Manifest => Code::ManifestUnknown,
        Kind::Blob => Code::BlobUnknown,
        Kind::Upload => Code::BlobUploadUnknown,
        Kind::Tags | Kind::Catalog | Kind::Referrers | Kind::Search | Kind::Other => Code::NameUnknown,
    }
}

fn not_upstream(subject: &str) -> String {
    format!(
        "{subject} is not known to its registry: check the spelling; a private repository needs a credential \
         in the mirror's configuration"
    )
}

fn not_hosted(subject: &str, repository: &Repository) -> String {
    let name = &repository.name;
    if name.as_str().contains('/') {
        format!("{subject} is not held here: `{name}` is a repository of this registry")
    } else {
        format!(
            "{subject} is not held here: names of one component are this registry's own; for Docker Hub's, ask \
             for `{}`",
            name.with_library()
        )
    }
}

/// For `Retry-After`: rounded up, never 0, which clients take for "at once".
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

impl From<&PushError> for ApiError {
    fn from(error: &PushError) -> Self {
        let code = match error {
            PushError::UploadUnknown { .. } => Code::BlobUploadUnknown,
            PushError::UploadBusy(_) => Code::UploadBusy,
            PushError::OutOfOrder { .. } => Code::RangeInvalid,
            PushError::Length { .. } => Code::SizeInvalid,
            PushError::Interrupted { why, .. } | PushError::ManifestInterrupted(why) => match why {
                Interrupted::Broken(_) => Code::SizeInvalid,
                Interrupted::Stalled(_) => Code::UploadStalled,
            },
            PushError::BlobDigest { .. } | PushError::ManifestDigest { .. } => Code::DigestInvalid,
            PushError::TooManyUploads(_) => Code::TooManyRequests,
            PushError::ManifestTooLarge(_) => Code::ManifestTooLarge,
            PushError::Manifest(_) => Code::ManifestInvalid,
            PushError::Missing { .. } => Code::ManifestBlobUnknown,
            PushError::Immutable { .. } | PushError::Origin { .. } => Code::Denied,
            PushError::DeleteOff => Code::Unsupported,
            PushError::NoManifest(_) => Code::ManifestUnknown,
            PushError::NoBlob(_) => Code::BlobUnknown,
            PushError::DiskTrouble(_) => Code::NotKept,
            PushError::Disk(_) => Code::Unknown,
        };
        let refused = Self::new(code, error.to_string());
        match error {
            PushError::TooManyUploads(_) | PushError::DiskTrouble(_) => refused.retry_after(PUSH_AGAIN),
            PushError::DeleteOff => refused.with(header::ALLOW, HeaderValue::from_static("GET, HEAD, PUT")),
            _ => refused,
        }
    }
}

impl From<PushError> for ApiError {
    fn from(error: PushError) -> Self {
        Self::from(&error)
    }
}

impl From<UnknownName> for ApiError {
    fn from(error: UnknownName) -> Self {
        let code = match error {
            UnknownName::Invalid(_) => Code::NameInvalid,
            UnknownName::Upstream(_) => Code::UpstreamUnknown,
            UnknownName::Disagree { .. }
            | UnknownName::HostedOnly(_)
            | UnknownName::MirrorOnly(_)
            | UnknownName::Apart(_)
            | UnknownName::Ambiguous { .. }
            | UnknownName::Hosted { .. }
            | UnknownName::NoDefault(_) => Code::NameUnknown,
        };
        Self::new(code, error.to_string())
    }
}

impl From<InvalidDigest> for ApiError {
    fn from(error: InvalidDigest) -> Self {
        Self::new(Code::DigestInvalid, error.to_string())
    }
}

impl From<InvalidReference> for ApiError {
    fn from(error: InvalidReference) -> Self {
        match error {
            InvalidReference::Digest(error) => error.into(),
            // Reading by what is no tag is a 404 in the specification's table (end-3).
            InvalidReference::Tag(_) => Self::new(Code::ManifestUnknown, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use answer::Error;

    fn repository(owner: Owner, name: &str) -> Repository {
        Repository { owner, name: name.parse().unwrap() }
    }

    fn hub() -> Repository {
        repository(Owner::Upstream(crate::oci::UpstreamHost::docker_hub()), "library/nginx")
    }

    fn both() -> (String, String) {
        ("docker.io/library/nginx:1".to_owned(), "on purpose".to_owned())
    }

    fn status(error: &Error, kind: Kind, repository: &Repository) -> (u16, &'static str) {
        let error = ApiError::of_content(error, kind, repository);
        (error.status().as_u16(), error.code.text())
    }

    #[test]
    fn every_cause_has_its_status_on_each_face() {
        let ((subject, why), after) = (both(), Duration::from_millis(1500));
        let unavailable = Error::Unavailable { subject: subject.clone(), why: why.clone() };
        let disk = Error::Disk { subject: subject.clone(), why: why.clone() };
        let denied = Error::Denied { subject: subject.clone(), why: why.clone() };
        let origin = Error::Origin { subject: subject.clone(), why };
        let limited = Error::UpstreamLimited { subject: subject.clone(), retry_after: after };
        let client = Error::ClientLimited { subject: subject.clone(), retry_after: after };
        let why = "kept for others".to_owned();
        let held_back = Error::HeldBack { subject: subject.clone(), why, retry_after: after };
        let missing = Error::NotFound(subject);
        let circle = Error::Loop("correct it".to_owned());
        let (hub, hosted) = (hub(), repository(Owner::Hosted, "app"));
        for (error, kind, repository, expected) in [
            (&missing, Kind::Manifest, &hub, (404, "MANIFEST_UNKNOWN")),
            (&missing, Kind::Blob, &hub, (404, "BLOB_UNKNOWN")),
            (&missing, Kind::Tags, &hub, (404, "NAME_UNKNOWN")),
            (&missing, Kind::Manifest, &hosted, (404, "MANIFEST_UNKNOWN")),
            (&denied, Kind::Manifest, &hub, (403, "DENIED")),
            (&limited, Kind::Manifest, &hub, (429, "TOOMANYREQUESTS")),
            (&held_back, Kind::Manifest, &hub, (429, "TOOMANYREQUESTS")),
            (&client, Kind::Blob, &hub, (429, "TOOMANYREQUESTS")),
            (&unavailable, Kind::Manifest, &hub, (503, "UNAVAILABLE")),
            (&unavailable, Kind::Blob, &hub, (404, "BLOB_UNKNOWN")),
            (&disk, Kind::Manifest, &hub, (500, "UNKNOWN")),
            (&disk, Kind::Blob, &hub, (404, "BLOB_UNKNOWN")),
            (&disk, Kind::Blob, &hosted, (500, "UNKNOWN")),
            (&origin, Kind::Blob, &hub, (404, "NAME_UNKNOWN")),
            (&circle, Kind::Manifest, &hub, (400, "LOOP_DETECTED")),
            (&circle, Kind::Blob, &hub, (400, "LOOP_DETECTED")),
            (&Error::Range { size: 7 }, Kind::Blob, &hub, (416, "RANGE_INVALID")),
        ] {
            assert_eq!(status(error, kind, repository), expected, "{error} {kind:?}");
        }
    }

    #[test]
    fn without_a_store_no_mirrored_blob_is_a_5xx() {
        let status =
            |kind, repository: Option<&Repository>| ApiError::not_ready(kind, repository).status().as_u16();
        assert_eq!(status(Kind::Blob, Some(&hub())), 404);
        assert_eq!(status(Kind::Blob, Some(&repository(Owner::Hosted, "app"))), 503);
        assert_eq!(status(Kind::Manifest, Some(&hub())), 503);
        assert_eq!(status(Kind::Catalog, None), 503);
    }

    #[test]
    fn headers_say_when_and_what() {
        let retry = |after| {
            let response = ApiError::too_many(after).response();
            response.headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(retry(Duration::from_millis(1500)), "2");
        assert_eq!(retry(Duration::ZERO), "1");
        let outside = ApiError::of_content(&Error::Range { size: 7 }, Kind::Blob, &hub()).response();
        assert_eq!(outside.headers()[header::CONTENT_RANGE], "bytes */7");
        assert_eq!(
            ApiError::method("no".to_owned(), "GET, HEAD").response().headers()[header::ALLOW],
            "GET, HEAD"
        );
    }

    #[test]
    fn a_bare_name_that_is_not_hosted_is_told_of_docker_hubs() {
        let missing = Error::NotFound("nginx:1.27".to_owned());
        let message =
            |name| ApiError::of_content(&missing, Kind::Manifest, &repository(Owner::Hosted, name)).message;
        assert_eq!(
            message("nginx"),
            "nginx:1.27 is not held here: names of one component are this registry's own; for Docker Hub's, ask for \
             `library/nginx`"
        );
        assert!(!message("corp.internal/nginx").contains("Docker Hub"));
    }

    #[test]
    fn the_body_is_json_whatever_the_message_holds() {
        let response = ApiError::new(Code::NameInvalid, "a \"quote\"\u{0}\n").response();
        let Payload::Full(body) = response.into_body() else { panic!("a body") };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"][0]["code"], "NAME_INVALID");
        assert_eq!(body["errors"][0]["message"], "a \"quote\"\u{0}\n");
    }
}
