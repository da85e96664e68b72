//! `vmlet image pull`.

use std::cell::RefCell;
use std::io::{self, IsTerminal};

use clap::Args;
use futures_util::future::join_all;
use indicatif::ProgressDrawTarget;
use jiff::Timestamp;
use serde_json::json;

use crate::api::{age, human};
use crate::cli::client::Client;
use crate::cli::error::{CliError, Outcome};
use crate::cli::live::{Board, Sign};
use crate::cli::text::printable;
use crate::image::Reference;
use crate::object::{Bytes, PullProgress};
use crate::storage::PullUpdate;

/// Pull images ahead of the VMs that will run them
///
/// Who wants the same digest shares one pull, VMs included. The base disk is kept for the daemon's
/// --image-grace unless an Image object or a VM refers to it by then. Ctrl-C gives the pull up, if nobody else
/// waits for it.
#[derive(Args, Debug)]
pub(super) struct Pull {
    /// OCI references: registry/repository:tag
    #[arg(required = true, value_name = "REFERENCE")]
    references: Vec<String>,

    /// Print nothing but digests
    #[arg(short, long)]
    quiet: bool,
}

impl Pull {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        for reference in &self.references {
            // Before anything is pulled.
            reference.parse::<Reference>().map_err(|error| CliError::usage(error.to_string()))?;
        }
        let screen = RefCell::new(Screen::new(self.quiet, &self.references));
        let pulls = self.references.iter().map(|reference| pull(client, reference, &screen));
        let outcomes = join_all(pulls).await;
        screen.into_inner().clear();
        let mut problem: Option<CliError> = None;
        for (reference, outcome) in self.references.iter().zip(outcomes) {
            match outcome {
                Ok(done) if self.quiet => println!("{}", done.digest),
                Ok(done) => println!("{reference} is {done}"),
                // What all of them failed with is said once.
                Err(error) if problem.as_ref().is_some_and(|told| told.message == error.message) => {}
                Err(error) => {
                    if let Some(earlier) = problem.replace(error) {
                        earlier.print();
                    }
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

/// What a pull came to.
struct Done {
    digest: String,
    allocated: u64,
    already_there: bool,
    kept_until: Option<Timestamp>,
}

/// `sha256:… (85 MiB); it was there already; kept for 10m unless something refers to it`
impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.digest, Bytes(self.allocated))?;
        if self.already_there {
            f.write_str("; it was there already")?;
        }
        match self.kept_until.map(|until| age(Timestamp::now(), until)) {
            None => Ok(()),
            Some(grace) if grace == "0s" => f.write_str("; it is not kept: nothing refers to it"),
            Some(grace) => write!(f, "; kept for {grace} unless something refers to it"),
        }
    }
}

async fn pull(client: &Client, reference: &str, screen: &RefCell<Screen>) -> Result<Done, CliError> {
    let mut updates = client.post_stream("/storage/pull", &json!({"source": reference})).await?;
    while let Some(update) = updates.line().await? {
        match update {
            PullUpdate::Done { digest, allocated, already_there, kept_until } => {
                screen.borrow_mut().remove(reference);
                return Ok(Done { digest: digest.to_string(), allocated, already_there, kept_until });
            }
            PullUpdate::Failed { reason, message } => {
                screen.borrow_mut().remove(reference);
                return Err(failure(reference, &reason, &message));
            }
            on_its_way => screen.borrow_mut().show(reference, &on_its_way),
        }
    }
    Err(CliError::new(format!("{reference}: the daemon hung up")).hint("is it still running? See its log"))
}

fn failure(reference: &str, reason: &str, message: &str) -> CliError {
    let said = printable(message);
    let named = if said.contains(reference) { String::new() } else { format!("{reference}: ") };
    let error = CliError::new(format!("{named}{said}"));
    match reason {
        "NotFound" => error.hint("check the name and the tag"),
        "Unauthorized" => {
            error.hint("the registry wants other credentials, or does not show this image to you")
        }
        "RegistryUnavailable" => error
            .hint("is the registry up, and reachable from the daemon? Plain http is spoken to loopback only"),
        "NoSpace" => error.hint("`vmlet image df` shows what takes the space"),
        _ => error,
    }
}

/// Where progress is shown: a bar for each pull on a terminal, else a line now and then.
struct Screen {
    board: Option<Board>,
    quiet: bool,
    /// The last line of each pull.
    said: Vec<(String, String)>,
}

impl Screen {
    fn new(quiet: bool, references: &[String]) -> Self {
        let live = !quiet && io::stderr().is_terminal();
        let board = live.then(|| Board::new(ProgressDrawTarget::stderr()));
        let mut screen = Screen { board, quiet, said: Vec::new() };
        if live {
            // In this order, whoever is heard of first.
            references.iter().for_each(|reference| screen.show(reference, &PullUpdate::Resolving));
        }
        screen
    }

    fn show(&mut self, reference: &str, update: &PullUpdate) {
        if let Some(board) = &mut self.board {
            let (text, sign) = bar(update);
            board.set(reference, format!("{reference}  {text}"), sign);
        } else if !self.quiet {
            self.say(reference, line(update));
        }
    }

    /// Only what is new.
    fn say(&mut self, reference: &str, line: String) {
        match self.said.iter_mut().find(|(of, _)| of == reference) {
            Some((_, said)) if *said == line => return,
            Some((_, said)) => said.clone_from(&line),
            None => self.said.push((reference.to_owned(), line.clone())),
        }
        eprintln!("{reference}: {line}");
    }

    fn remove(&mut self, reference: &str) {
        if let Some(board) = &mut self.board {
            board.remove(reference);
        }
    }

    fn clear(self) {
        if let Some(mut board) = self.board {
            board.clear();
        }
    }
}

/// A pull as a line with a bar.
pub(super) fn bar(update: &PullUpdate) -> (String, Sign) {
    match update {
        PullUpdate::Pulling { progress, .. } if progress.layers > 0 => {
            let left = left(progress).map(|left| format!(", {left} left")).unwrap_or_default();
            let percent = u8::try_from(progress.percent()).unwrap_or(100);
            (format!("{progress}{left}"), Sign::Percent(percent))
        }
        other => (line(other), Sign::Busy),
    }
}

/// A pull as a line of a log: one a layer.
pub(super) fn line(update: &PullUpdate) -> String {
    match update {
        PullUpdate::Resolving => "asking for its digest".to_owned(),
        PullUpdate::Queued { .. } => "queued".to_owned(),
        PullUpdate::Pulling { progress: PullProgress { layers: 0, .. }, .. } => {
            "reading the manifest".to_owned()
        }
        PullUpdate::Pulling { progress, .. } => {
            let layer = (progress.layers_done + 1).min(progress.layers);
            format!("layer {layer} of {}, {} in all", progress.layers, Bytes(progress.bytes))
        }
        PullUpdate::Done { .. } => "done".to_owned(),
        PullUpdate::Failed { message, .. } => message.clone(),
    }
}

/// How long the download goes on at its present rate.
fn left(progress: &PullProgress) -> Option<String> {
    let rate = progress.bytes_per_second.filter(|rate| *rate > 0)?;
    let seconds = progress.bytes.saturating_sub(progress.bytes_done).div_ceil(rate);
    (seconds > 0).then(|| human(seconds))
}
