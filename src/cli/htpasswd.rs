//! `forebay htpasswd`

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::access::htpasswd;

use super::{FAILED, MISUSED};

/// Set, change or remove a password
///
/// Asks for it twice on a terminal; else the first line of standard input is the password. A running
/// server takes the file up by itself.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct HtpasswdArgs {
    /// Make the file; it must not be there yet
    #[arg(short, long, conflicts_with = "delete")]
    create: bool,
    /// Remove the user
    #[arg(short = 'D', long)]
    delete: bool,
    /// What a guess costs, as a power of two: 10 takes some 50 ms
    #[arg(long, value_name = "4..16", default_value_t = htpasswd::COST,
          value_parser = clap::value_parser!(u32).range(4..=i64::from(htpasswd::COST_MAX)))]
    cost: u32,
    /// The file of names and hashes
    file: PathBuf,
    /// The user's name
    user: String,
}

const EXAMPLES: &str = "\
Examples:
  The first user of a new file:
    forebay htpasswd -c /etc/forebay/htpasswd alice
  From a secret store:
    vault read -field=password ci | forebay htpasswd /etc/forebay/htpasswd ci
  Somebody has left:
    forebay htpasswd -D /etc/forebay/htpasswd alice";

/// The file is read by people and a server: no one writes more.
const PASSWORD_LINE_MAX: u64 = 4096;

pub fn run(args: HtpasswdArgs) -> ExitCode {
    let said = match change(&args) {
        Ok(said) => said,
        Err((code, why)) => {
            eprintln!("forebay: {why}");
            return ExitCode::from(code);
        }
    };
    eprintln!("{said}");
    ExitCode::SUCCESS
}

type Refused = (u8, String);

fn misused(why: impl Into<String>) -> Refused {
    (MISUSED, why.into())
}

fn failed(path: &Path, error: &io::Error) -> Refused {
    (FAILED, format!("{}: {error}", path.display()))
}

fn change(args: &HtpasswdArgs) -> Result<String, Refused> {
    let HtpasswdArgs { file, user, .. } = args;
    htpasswd::check_name(user).map_err(misused)?;
    // Where a link leads, the file is; the link stays.
    let path = std::fs::canonicalize(file).unwrap_or_else(|_| file.clone());
    let text = match std::fs::read_to_string(&path) {
        Ok(_) if args.create => {
            let shown = file.display();
            return Err(misused(format!("{shown} is there already; without -c, the user is added to it")));
        }
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && args.create => String::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(misused(format!("{}: there is no such file; -c makes it", file.display())));
        }
        Err(error) => return Err(failed(file, &error)),
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        let why =
            format!("{}: the directory {} is not there; make it first", file.display(), folder.display());
        return Err(misused(why));
    }
    let hash = match args.delete {
        true => None,
        false => Some(htpasswd::hash(&password(user)?, args.cost).map_err(misused)?),
    };
    let Some(edited) = htpasswd::edit(&text, user, hash.as_deref()) else {
        return Err(misused(format!("{} has no user `{user}`", file.display())));
    };
    replace(&path, &edited).map_err(|error| failed(file, &error))?;
    let shown = file.display();
    Ok(match args.delete {
        true => format!("{user} is removed from {shown}"),
        false => format!("the password of {user} is set in {shown}"),
    })
}

/// The new file takes the old one's place as a whole, with its owner and its permissions.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("this is no name of a file"))?;
    let fresh = folder.join(format!(".{}.{}", name.display(), std::process::id()));
    let written = write(&fresh, text, std::fs::metadata(path).ok().as_ref())
        .and_then(|()| std::fs::rename(&fresh, path))
        .and_then(|()| File::open(folder)?.sync_all());
    if written.is_err() {
        // It may not have been made, or have its new name already.
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

fn write(path: &Path, text: &str, before: Option<&std::fs::Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(before) = before {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn password(user: &str) -> Result<String, Refused> {
    let stdin = io::stdin();
    let unreadable = |error: io::Error| (FAILED, format!("the password cannot be read: {error}"));
    if !stdin.is_terminal() {
        return line(&mut stdin.lock()).map_err(unreadable);
    }
    let ask = |prompt: &str| {
        eprint!("{prompt}");
        let answer = unseen(|| line(&mut stdin.lock()));
        eprintln!();
        answer.map_err(unreadable)
    };
    let first = ask(&format!("Password of {user}: "))?;
    if ask("Once more: ")? == first {
        Ok(first)
    } else {
        Err(misused("the two passwords differ; nothing was changed"))
    }
}

fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    io::Read::take(input, PASSWORD_LINE_MAX).read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(line)
}

/// Reads from the terminal without showing what is typed.
fn unseen(read: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &quiet)?;
    let answer = read();
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_permissions_and_a_new_one_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        replace(&path, "a:1\n").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, "a:2\n").unwrap();
        assert_eq!((mode(), std::fs::read_to_string(&path).unwrap().as_str()), (0o640, "a:2\n"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn users_are_added_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("htpasswd");
        std::fs::write(&file, "# people\nalice:x\n").unwrap();
        let args = |create, delete, user: &str| HtpasswdArgs {
            create,
            delete,
            cost: 4,
            file: file.clone(),
            user: user.to_owned(),
        };
        assert!(change(&args(true, false, "bob")).unwrap_err().1.contains("there already"));
        assert!(change(&args(false, true, "bob")).unwrap_err().1.contains("no user `bob`"));
        assert!(change(&args(false, true, "a:b")).unwrap_err().1.contains("no name"));
        assert!(change(&args(false, true, "alice")).is_ok());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "# people\n");
        std::fs::remove_file(&file).unwrap();
        assert!(change(&args(false, true, "alice")).unwrap_err().1.contains("-c makes it"));
    }

    #[test]
    fn a_line_ends_at_its_end() {
        for (input, expected) in
            [("secret", "secret"), ("secret\n", "secret"), ("a b \r\nmore", "a b "), ("", "")]
        {
            assert_eq!(line(&mut input.as_bytes()).unwrap(), expected);
        }
    }
}
