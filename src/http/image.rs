//! Images as people write them for their clients: `nginx`, `org/app:1`, `ghcr.io/org/app@sha256:…`.

use super::owners::{Owners, UnknownName};
use crate::oci::{InvalidReference, Name, Owner, Reference, Repository, UpstreamHost};

/// Longest spelling: a name and a digest.
const LONGEST: usize = 512;

/// Why a text names no image that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImage {
    #[error("`{0}` is no image: write it as in `nginx:1.27` or `ghcr.io/org/app@sha256:…`")]
    Form(String),
    #[error(transparent)]
    Name(#[from] UnknownName),
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error("`{0}` is hosted here: there is no upstream to fetch it from")]
    Hosted(String),
    #[error(
        "`{asked}` is not this server, which is `localhost:{port}`; another registry there is to be configured: \
         `--upstream {asked}`"
    )]
    Elsewhere { asked: String, port: u16 },
}

impl Owners {
    /// The image that a client means by `text`: a first component with a dot or a port is a registry,
    /// without one it is Docker Hub's. Forebay's own spellings are known too: aliases, and names
    /// behind this server's address on this machine, at `port`.
    pub fn image(&self, text: &str, port: Option<u16>) -> Result<(Repository, Reference), InvalidImage> {
        let (repository, reference) = self.any_image(text, port)?;
        match repository.owner {
            Owner::Upstream(_) => Ok((repository, reference)),
            Owner::Hosted => Err(InvalidImage::Hosted(repository.to_string())),
        }
    }

    /// The same for hosted images too.
    pub fn any_image(&self, text: &str, port: Option<u16>) -> Result<(Repository, Reference), InvalidImage> {
        let form = || InvalidImage::Form(text.chars().take(80).collect());
        if text.is_empty() || text.len() > LONGEST || text.contains(char::is_whitespace) {
            return Err(form());
        }
        let (name, reference) = parted(text);
        let reference: Reference = reference.parse()?;
        let asked =
            name.split_once('/').map(|(first, _)| first).filter(|first| self.upstream(first).is_err());
        let theirs = asked.and_then(|asked| Some((asked, port_here(asked)?)));
        if let (Some((asked, theirs)), Some(port)) = (theirs, port)
            && theirs != port
        {
            return Err(InvalidImage::Elsewhere { asked: asked.to_owned(), port });
        }
        Ok((self.repository(name, port)?, reference))
    }

    /// The hosted image that a client of this server would mean by a text, which means Docker Hub's where
    /// nothing says that it is this server's.
    pub fn own_image(&self, text: &str) -> Option<(Repository, Reference)> {
        let (name, reference) = parted(text);
        let repository = self.resolve(None, name).ok().filter(|found| found.owner == Owner::Hosted)?;
        Some((repository, reference.parse().ok()?))
    }

    /// The repositories that an image's name, with its registry, may have meant under another configuration.
    pub fn once(text: &str) -> Option<([Repository; 2], Reference)> {
        let (name, reference) = parted(text);
        let (host, name) = name.split_once('/').filter(|(first, _)| is_registry(first))?;
        let (host, name): (UpstreamHost, Name) = (host.parse().ok()?, name.parse().ok()?);
        let name = if host.is_docker_hub() { name.with_library() } else { name };
        let of = |default| Repository {
            owner: Owner::Upstream(host.clone().with_default(default)),
            name: name.clone(),
        };
        Some(([of(false), of(true)], reference.parse().ok()?))
    }

    /// The image of a name that another Forebay gave it. By loopback's address that one means what it
    /// hosts, whatever its port; unless a registry there is configured here.
    pub fn named_elsewhere(
        &self,
        text: &str,
        port: Option<u16>,
    ) -> Result<(Repository, Reference), InvalidImage> {
        let host = text.split_once('/').map(|(host, _)| host).filter(|host| self.upstream(host).is_err());
        self.any_image(text, host.and_then(port_here).or(port))
    }

    /// What clients call an image, with its registry: for a hosted one that names none, this server at
    /// `port` of this machine.
    pub fn full_name(repository: &Repository, reference: &Reference, port: u16) -> String {
        let name = repository.to_string();
        let has_registry = name
            .split_once('/')
            .is_some_and(|(first, _)| repository.owner != Owner::Hosted || is_registry(first));
        let host = if has_registry { String::new() } else { format!("localhost:{port}/") };
        format!("{host}{}", reference.of(name))
    }

    fn repository(&self, name: &str, port: Option<u16>) -> Result<Repository, UnknownName> {
        let Some((first, rest)) = name.split_once('/') else { return self.docker_hubs(name) };
        if port.is_some() && port_here(first) == port {
            return self.resolve(None, rest);
        }
        // An alias is an upstream's first, as in a request.
        if self.upstream(first).is_ok() {
            return self.resolve(Some(first), rest);
        }
        match self.resolve(None, name) {
            Ok(repository) if repository.owner == Owner::Hosted => Ok(repository),
            _ if is_registry(first) => self.upstream(first).and_then(|_| self.resolve(Some(first), rest)),
            _ => self.docker_hubs(name),
        }
    }

    /// Docker Hub's repository of a short name; where another upstream stands for it, that one's.
    fn docker_hubs(&self, name: &str) -> Result<Repository, UnknownName> {
        match self.upstream("docker.io") {
            Ok(_) => self.resolve(Some("docker.io"), name),
            Err(_) if name.contains('/') => self.resolve(None, name),
            Err(unknown) => self.resolve(None, &format!("library/{name}")).map_err(|_| unknown),
        }
    }
}

/// Name and reference; a digest decides over a tag before it, and nothing means `latest`.
fn parted(text: &str) -> (&str, &str) {
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    (name, digest.or(tag).unwrap_or("latest"))
}

/// Whether a name's first component is a registry's.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// The port of an address on this machine, by loopback.
fn port_here(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    matches!(host, "localhost" | "127.0.0.1" | "[::1]").then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::OwnersOptions;
    use super::*;
    use crate::oci::UpstreamHost;
    use proptest::prelude::*;

    fn owners() -> Owners {
        let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
        Owners::new(OwnersOptions {
            upstreams: vec![
                (host("docker.io"), vec!["dockerhub".to_owned()]),
                (host("ghcr.io"), vec!["gh".to_owned()]),
                (host("localhost:5001"), vec![]),
            ],
            hosted: vec!["*".to_owned(), "corp.internal/**".to_owned()],
            ..OwnersOptions::default()
        })
        .unwrap()
    }

    fn image(text: &str) -> String {
        match owners().image(text, Some(5000)) {
            Ok((repository, reference @ Reference::Tag(_))) => format!("{repository}:{reference}"),
            Ok((repository, reference @ Reference::Digest(_))) => format!("{repository}@{reference}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn images_are_what_clients_take_them_for() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1", "docker.io/library/nginx:1".to_owned()),
            ("org/app", "docker.io/org/app:latest".to_owned()),
            ("docker.io/nginx:1", "docker.io/library/nginx:1".to_owned()),
            ("docker.io/library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/org/app:2", "docker.io/org/app:2".to_owned()),
            ("ghcr.io/org/app", "ghcr.io/org/app:latest".to_owned()),
            ("localhost:5001/app:x", "localhost:5001/app:x".to_owned()),
            ("gh/org/app:x", "ghcr.io/org/app:x".to_owned()),
            ("localhost:5000/ghcr.io/org/app:1", "ghcr.io/org/app:1".to_owned()),
            ("127.0.0.1:5000/library/nginx", "docker.io/library/nginx:latest".to_owned()),
        ] {
            assert_eq!(image(text), expected, "{text}");
        }
        assert_eq!(image(&format!("nginx@{digest}")), format!("docker.io/library/nginx@{digest}"));
        assert_eq!(image(&format!("ghcr.io/a/b:1@{digest}")), format!("ghcr.io/a/b@{digest}"));
    }

    #[test]
    fn full_names_lead_back_to_the_image() {
        let owners = owners();
        for (text, expected) in [
            ("nginx:1", "docker.io/library/nginx:1"),
            ("gh/org/app", "ghcr.io/org/app:latest"),
            ("localhost:5001/app:x", "localhost:5001/app:x"),
            ("127.0.0.1:5000/myapp:1", "localhost:5000/myapp:1"),
            ("corp.internal/team/app", "corp.internal/team/app:latest"),
        ] {
            let (repository, reference) = owners.any_image(text, Some(5000)).unwrap();
            let name = Owners::full_name(&repository, &reference, 5000);
            assert_eq!(name, expected);
            for port in [5000, 6000] {
                let again = owners.named_elsewhere(&name, Some(port)).unwrap();
                assert_eq!(again, (repository.clone(), reference.clone()), "{name}");
            }
        }
        let digest: Reference = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let (repository, _) = owners.any_image("nginx", None).unwrap();
        let name = Owners::full_name(&repository, &digest, 5000);
        assert_eq!(owners.named_elsewhere(&name, None).unwrap().1, digest);
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_by_name() {
        for (text, part) in [
            ("localhost:5000/myapp:1", "`myapp` is hosted here"),
            ("corp.internal/team/app", "`corp.internal/team/app` is hosted here"),
            ("quay.io/org/app", "`quay.io` is not mirrored here"),
            ("localhost/app", "`localhost` is not mirrored here"),
            ("localhost:7000/app:1", "`localhost:7000` is not this server, which is `localhost:5000`"),
            ("Nginx", "`Nginx` is no repository name"),
            ("nginx:", "no tag"),
            ("nginx@sha256:00", "digest"),
            ("", "no image"),
            ("a b", "no image"),
            ("../x", "`..` is not mirrored here"),
            ("ghcr.io/../x", "no repository name"),
        ] {
            assert!(image(text).contains(part), "{text}: {}", image(text));
        }
        assert!(image(&"a".repeat(600)).contains("no image"));
    }

    #[test]
    fn a_name_alone_may_be_meant_for_an_own_image_and_a_registry_may_have_been_configured() {
        let own = |text| owners().own_image(text).map(|(found, reference)| format!("{found}:{reference}"));
        assert_eq!(own("myapp:1"), Some("myapp:1".to_owned()));
        assert_eq!((own("library/myapp:1"), own("ghcr.io/org/app")), (None, None));
        let once = |text| Owners::once(text).map(|(of, _)| of.map(|of| of.stored_name()));
        let stored = |names: [&str; 2]| Some(names.map(str::to_owned));
        assert_eq!(once("quay.io/org/app:2.0"), stored(["quay.io/org/app", "org/app"]));
        assert_eq!(once("docker.io/nginx"), stored(["docker.io/library/nginx", "library/nginx"]));
        assert_eq!((once("org/app"), once("nginx"), once("quay.io/../x")), (None, None, None));
    }

    #[test]
    fn without_docker_hub_short_names_are_the_defaults() {
        let host: UpstreamHost = "corp.example".parse().unwrap();
        let owners = |default| {
            let upstreams = vec![(host.clone().with_default(default), vec![])];
            Owners::new(OwnersOptions { upstreams, hosted: vec!["*".to_owned()], ..OwnersOptions::default() })
                .unwrap()
        };
        let of =
            |default, text| owners(default).image(text, None).map(|(repository, _)| repository.to_string());
        assert_eq!(of(true, "nginx").unwrap(), "corp.example/library/nginx");
        assert_eq!(of(true, "org/app").unwrap(), "corp.example/org/app");
        assert!(of(true, "quay.io/org/app").unwrap_err().to_string().contains("`quay.io` is not mirrored"));
        assert!(of(false, "nginx").unwrap_err().to_string().contains("`docker.io` is not mirrored"));
    }

    proptest! {
        #[test]
        fn an_image_is_of_a_configured_upstream_or_refused(text in "[a-z.:/@A-Z0-9_-]{0,40}|ghcr\\.io/[a-z/:@]{0,20}") {
            if let Ok((repository, _)) = owners().image(&text, Some(5000)) {
                let Owner::Upstream(host) = repository.owner else { panic!("hosted: {text}") };
                prop_assert!(["docker.io", "ghcr.io", "localhost:5001"].contains(&host.as_str()));
            }
        }
    }
}
