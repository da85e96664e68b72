//! Running nft(8).

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NetworkError;

/// How long one transaction may take; a few milliseconds are usual.
const NFT_TIMEOUT: Duration = Duration::from_secs(20);

/// How nft failed.
#[derive(Debug)]
pub(super) enum NftError {
    /// Something named in the script is not there.
    Absent(String),
    /// An element is there with another value.
    Exists(String),
    /// nft is not installed.
    Missing,
    /// It lacks rights.
    Denied,
    /// Anything else.
    Failed(String),
}

impl From<NftError> for NetworkError {
    fn from(error: NftError) -> Self {
        match error {
            NftError::Missing => {
                NetworkError::lasting("NftMissing", "nft is not installed: apt-get install nftables")
            }
            NftError::Denied => NetworkError::lasting(
                "PermissionDenied",
                "nft lacks the rights: run the daemon as root or use mode: user",
            ),
            NftError::Absent(text) | NftError::Exists(text) | NftError::Failed(text) => {
                NetworkError::passing("NftFailed", format!("nft refused a change: {text}"))
            }
        }
    }
}

/// Runs nft. A script is one transaction: all of it or nothing. Cancelling kills the process.
pub(super) async fn nft(arguments: &[&str], script: &str) -> Result<String, NftError> {
    match tokio::time::timeout(NFT_TIMEOUT, run_nft(arguments, script)).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(nft_failure(&String::from_utf8_lossy(&output.stderr))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(NftError::Missing),
        Ok(Err(error)) => Err(NftError::Failed(format!("it does not run: {error}"))),
        Err(_) => Err(NftError::Failed(format!("no answer within {} s", NFT_TIMEOUT.as_secs()))),
    }
}

async fn run_nft(arguments: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let written = stdin.write_all(script.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await?;
    // An nft that fails early closes its input; its message says more than the broken pipe.
    if output.status.success() {
        written?;
    }
    Ok(output)
}

fn nft_failure(stderr: &str) -> NftError {
    let first: String = stderr.lines().next().unwrap_or("no message").chars().take(300).collect();
    if stderr.contains("No such file or directory") {
        NftError::Absent(first)
    } else if stderr.contains("File exists") {
        NftError::Exists(first)
    } else if stderr.contains("Operation not permitted") {
        NftError::Denied
    } else {
        NftError::Failed(first)
    }
}
