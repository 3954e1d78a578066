//! Checks of the files that a configuration names: secrets, keys, certificates.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// No secret or certificate bundle is larger; a disk image by mistake is.
const LARGEST: u64 = 4 << 20;

/// All of a small regular file. Opening a pipe could wait forever, and it could be read once only.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let unreadable =
        |error: std::io::Error| format!("{shown} cannot be read: {error}; mind the path and its permissions");
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{shown} is no regular file; name one"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("{shown} is larger than 4 MiB; is this the right file?"));
    }
    Ok(bytes)
}

/// A file that holds a secret on its own.
pub fn secret(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    if read(&path)?.trim_ascii().is_empty() {
        return Err(format!("{} is empty; write the password into it", path.display()));
    }
    Ok(path)
}

/// A PEM file that holds a section whose label ends in `label`.
pub fn pem(path: &str, label: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let end = format!("{label}-----");
    let bytes = read(&path)?;
    let found = String::from_utf8_lossy(&bytes)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end));
    if found {
        Ok(path)
    } else {
        Err(format!("{} holds no PEM section `-----BEGIN {end}`; is this the right file?", path.display()))
    }
}

/// A file of JSON.
pub fn json(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let wrong = |error| format!("{} is no JSON: {error}; is this the right file?", path.display());
    serde_json::from_slice::<serde::de::IgnoredAny>(&read(&path)?).map_err(wrong)?;
    Ok(path)
}

/// A warning if everybody on this machine may read the file.
pub fn exposed(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    let open = mode & 0o004 != 0;
    open.then(|| {
        format!("{path} may be read by every user of this machine; `chmod 600 {path}`", path = path.display())
    })
}
