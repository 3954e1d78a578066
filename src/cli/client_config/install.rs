//! Writes a client's files where it looks for them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::File;

/// All of them, or none where a file is there already and says something else.
pub fn install(directory: &Path, files: &[File]) -> Result<(), String> {
    let mut missing = Vec::new();
    for file in files {
        let path = place(directory, file);
        match std::fs::read(&path) {
            Ok(there) if there == file.text.as_bytes() => {
                eprintln!("forebay: {} is so already", path.display())
            }
            Ok(_) => {
                return Err(format!(
                    "{} is there already and says something else: merge it by hand (without --out, this command \
                     prints it), or move it away; nothing was written",
                    path.display()
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push((path, &file.text)),
            Err(error) => return Err(format!("{}: {error}; nothing was written", path.display())),
        }
    }
    for (path, text) in missing {
        write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("forebay: wrote {}", path.display());
    }
    Ok(())
}

fn place(directory: &Path, file: &File) -> PathBuf {
    directory.join(file.path.strip_prefix("/").unwrap_or(&file.path))
}

/// As a whole: a client that reads it meanwhile finds no half of it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".forebay");
    let beside = folder.join(name);
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
