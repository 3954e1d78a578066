//! What commands have in common that the running server carries out.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{FAILED, misused};
use crate::config::{self, Flags};
use crate::control::{Client, ClientError};
use crate::layout;

/// Which server.
#[derive(Args, Clone, Debug)]
pub struct Server {
    /// Data directory of the server [default: as configured]
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Configuration file that names it [default: /etc/forebay/forebay.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Server {
    /// Its control socket. The error is told already.
    pub fn client(self) -> Result<Client, ExitCode> {
        // With --data there is nothing to ask the configuration, which may be another program's.
        let data = match self.data {
            Some(data) => data,
            None => {
                let flags = Flags { config: self.config, ..Flags::default() };
                config::load(&flags).map_err(|error| misused(&error))?.store.data
            }
        };
        Ok(Client::of(&data))
    }
}

/// Why a command did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server says why.
    #[error("it ended early: {0}")]
    Early(String),
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// Nobody reads what is said.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl Ended {
    /// Tells why on standard error, unless whoever read the output has gone on purpose.
    pub fn told(self) -> ExitCode {
        if !matches!(&self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            eprintln!("forebay: {self}");
        }
        FAILED.into()
    }
}
