//! Images that files name: lists, compose files, Kubernetes manifests. `-` is standard input.

mod compose;
mod kubernetes;
mod list;
mod yaml;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::control::IMAGES_MAX;

/// Larger than any manifest that was written for a cluster.
const FILE_MAX: u64 = 32 << 20;
/// Files of a directory.
const FILES_MAX: usize = 10_000;

/// Images on a command line, or in files that it names.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// As for a client: `nginx:1.27`, `ghcr.io/org/app@sha256:...`
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// A list of images, one a line, remarks behind `#`; `-` is standard input
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// A compose file, for its services' images
    #[arg(long, value_name = "FILE")]
    compose: Vec<PathBuf>,
    /// Kubernetes manifests, a file or a directory of them, for their pods' images
    #[arg(long, value_name = "FILE|DIRECTORY")]
    kubernetes: Vec<PathBuf>,
}

impl Named {
    /// All images that are named, each once.
    pub fn all(&self) -> Result<Vec<String>, String> {
        let lists = self.file.iter().cloned().map(Source::List);
        let composes = self.compose.iter().cloned().map(Source::Compose);
        let manifests = self.kubernetes.iter().cloned().map(Source::Kubernetes);
        let mut images = self.images.clone();
        for source in lists.chain(composes).chain(manifests) {
            images.extend(source.images().map_err(|error| error.to_string())?);
        }
        let mut seen = HashSet::new();
        images.retain(|image| seen.insert(image.clone()));
        if images.is_empty() {
            return Err(
                "no image is named: name some, or a file with --file, --compose or --kubernetes".to_owned()
            );
        }
        if images.len() > IMAGES_MAX {
            return Err(format!("{} images are named: {IMAGES_MAX} at once at most", images.len()));
        }
        Ok(images)
    }
}

/// Where images are named.
#[derive(Clone, Debug)]
pub enum Source {
    List(PathBuf),
    Compose(PathBuf),
    /// A file, or a directory of `*.yaml`, `*.yml` and `*.json`.
    Kubernetes(PathBuf),
}

/// Why a file's images are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
}

impl Source {
    /// The images, in the order in which they are named.
    pub fn images(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::List(path) => Ok(list::images(&text(path)?)),
            Self::Compose(path) => {
                let read = compose::images(&text(path)?, &variables(path)?);
                read.map_err(|(line, why)| Error::Line { path: path.clone(), line, why })
            }
            Self::Kubernetes(path) => {
                let mut found = Vec::new();
                for path in manifests(path)? {
                    let read = kubernetes::images(&text(&path)?);
                    found.extend(read.map_err(|(line, why)| Error::Line { path, line, why })?);
                }
                if found.is_empty() {
                    let why = "no pod in it names an image".to_owned();
                    return Err(Error::File { path: path.clone(), why });
                }
                Ok(found)
            }
        }
    }
}

fn text(path: &Path) -> Result<String, Error> {
    let error = |why: String| Error::File { path: path.to_owned(), why };
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(FILE_MAX + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|failure| error(failure.to_string()))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(error(format!("it is larger than {} MiB; is this the right file?", FILE_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| error("it is not UTF-8 text".to_owned()))
}

/// The process's variables, and below them those of an `.env` beside the compose file.
fn variables(compose: &Path) -> Result<compose::Variables, Error> {
    let file = compose.parent().unwrap_or(Path::new("")).join(".env");
    let mut variables = match compose.as_os_str() != "-" && file.exists() {
        true => compose::env_file(&text(&file)?),
        false => compose::Variables::new(),
    };
    // One whose name or value is no text cannot be meant.
    variables.extend(
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    Ok(variables)
}

/// The files of a directory, by name, or the file itself.
fn manifests(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let error = |why: String| Error::File { path: path.to_owned(), why };
    let is_manifest = |path: &PathBuf| {
        path.is_file()
            && path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known))
    };
    let entries = std::fs::read_dir(path).map_err(|failure| error(failure.to_string()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_manifest).collect();
    if files.is_empty() {
        return Err(error("no `*.yaml`, `*.yml` or `*.json` is in it".to_owned()));
    }
    if files.len() > FILES_MAX {
        return Err(error(format!("more than {FILES_MAX} files are in it")));
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_are_read_and_mistakes_placed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let pod = |image: &str| format!("spec: {{containers: [{{image: {image}}}]}}");
        at("2.yml", pod("b").as_bytes());
        at("1.yaml", pod("a").as_bytes());
        at("3.json", br#"{"spec":{"containers":[{"image":"c"}]}}"#);
        at("notes.txt", b"{{{");
        let directory_of = Source::Kubernetes(directory.path().to_owned());
        assert_eq!(directory_of.images().unwrap(), ["a", "b", "c"]);
        at("4.yaml", b"a: 1\n b: [\n");
        let error = directory_of.images().unwrap_err().to_string();
        assert!(error.contains("4.yaml:2: "), "{error}");
        let compose = at("compose.yml", b"services: {web: {image: 'nginx:$FOREBAY_TEST_TAG'}}");
        let error = Source::Compose(compose.clone()).images().unwrap_err().to_string();
        assert!(
            error.contains("compose.yml:1: ") && error.contains("`FOREBAY_TEST_TAG` is not set"),
            "{error}"
        );
        at(".env", b"FOREBAY_TEST_TAG=7\n");
        assert_eq!(Source::Compose(compose).images().unwrap(), ["nginx:7"]);
        for (name, bytes, part) in [
            ("binary", &b"\xff\xfe"[..], "not UTF-8"),
            ("large", &[b'#'; (FILE_MAX + 1) as usize], "larger than 32 MiB"),
        ] {
            let error = Source::List(at(name, bytes)).images().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(
            Source::Kubernetes(empty.path().to_owned()).images().unwrap_err().to_string().contains("*.yaml")
        );
        assert!(Source::List("/nonexistent".into()).images().is_err());
    }
}
