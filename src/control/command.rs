//! What the server does when it is told to: a request in JSON, then lines until it ends.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Commands by their names, which are the last components of their paths.
pub type Commands = HashMap<&'static str, Command>;

/// One command. Dropping what it runs ends it.
#[derive(Clone)]
pub struct Command {
    start: Start,
    /// Whether its request is one line, and bytes follow it.
    pub takes_bytes: bool,
}

type Start = Arc<dyn Fn(&[u8]) -> Result<Started, String> + Send + Sync>;
type Run = Box<dyn FnOnce(mpsc::Sender<Bytes>, Brought) -> BoxFuture<'static, Result<Bytes, String>> + Send>;

/// The bytes behind a request, in pieces. The error says why they ended before their end.
pub type Brought = BoxStream<'static, Result<Bytes, String>>;

/// A command whose request was understood.
pub struct Started {
    pub run: Run,
    /// It goes on though its client has left: half of it is of no use to anybody.
    pub outlives_client: bool,
}

/// What a command is asked for.
pub trait Request: DeserializeOwned + Send + 'static {
    /// Refuses what is too much or makes no sense, and says why.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether it goes on though its client has left.
    fn outlives_client(&self) -> bool {
        false
    }
}

/// Where the lines of an answer go.
pub struct Report<L> {
    lines: mpsc::Sender<Bytes>,
    line: PhantomData<fn(L)>,
}

impl<L> Clone for Report<L> {
    fn clone(&self) -> Self {
        Self { lines: self.lines.clone(), line: PhantomData }
    }
}

impl<L: Serialize> Report<L> {
    /// Waits until there is room for the line. False: nobody listens any more.
    pub async fn tell(&self, line: &L) -> bool {
        self.lines.send(text(line)).await.is_ok()
    }

    /// The same from a blocking thread.
    pub fn tell_blocking(&self, line: &L) -> bool {
        self.lines.blocking_send(text(line)).is_ok()
    }

    /// Sends bytes behind a line that says how many. False: nobody listens any more.
    pub async fn bytes(&self, line: &L, bytes: Bytes) -> bool {
        self.tell(line).await && self.lines.send(bytes).await.is_ok()
    }

    /// Tells it only where there is room, for news that the next overtakes.
    pub fn try_tell(&self, line: &L) {
        let _ = self.lines.try_send(text(line));
    }
}

impl Command {
    /// A command that tells lines, and gives the last one or why it ended early.
    pub fn new<R: Request, L: Serialize + Send + 'static>(
        run: impl Fn(R, Report<L>) -> BoxFuture<'static, Result<L, String>> + Send + Sync + 'static,
    ) -> Self {
        Self::of(move |request, _, report| run(request, report), false)
    }

    /// The same with bytes behind the request.
    pub fn taking_bytes<R: Request, L: Serialize + Send + 'static>(
        run: impl Fn(R, Brought, Report<L>) -> BoxFuture<'static, Result<L, String>> + Send + Sync + 'static,
    ) -> Self {
        Self::of(run, true)
    }

    fn of<R: Request, L: Serialize + Send + 'static>(
        run: impl Fn(R, Brought, Report<L>) -> BoxFuture<'static, Result<L, String>> + Send + Sync + 'static,
        takes_bytes: bool,
    ) -> Self {
        let run = Arc::new(run);
        let start = move |request: &[u8]| {
            // To ask for nothing in particular takes no body.
            let request: &[u8] = if request.is_empty() { b"{}" } else { request };
            let request: R =
                serde_json::from_slice(request).map_err(|error| format!("no such request: {error}"))?;
            request.check()?;
            let outlives_client = request.outlives_client();
            let run = run.clone();
            let run: Run = Box::new(move |lines, brought| {
                let report = Report { lines, line: PhantomData };
                run(request, brought, report).map(|last| last.map(|line| text(&line))).boxed()
            });
            Ok(Started { run, outlives_client })
        };
        Self { start: Arc::new(start), takes_bytes }
    }

    /// Reads a request. The error says why it is refused.
    pub fn start(&self, request: &[u8]) -> Result<Started, String> {
        (self.start)(request)
    }
}

/// A line as it is sent.
pub fn text(value: &impl Serialize) -> Bytes {
    // Structs of texts and numbers: nothing in them can fail to be written.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
