//! Docker's credential helpers: programs that keep passwords
//! (docker-credential-helpers, "Development").

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::credentials::{Credential, Secret};

/// Some ask a service of their own.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers are far smaller.
const ANSWER_BYTES: u64 = 64 << 10;
/// The user name that says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Secret,
}

/// Asks `docker-credential-<name>` for the credential of a server. None if it has none.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, String> {
    if !is_name(name) {
        return Err(format!("the credential helper {:?} has no plain name", name));
    }
    let program = format!("docker-credential-{name}");
    match tokio::time::timeout(PATIENCE, run(&program, server)).await {
        Ok(Ok((succeeded, answer))) => {
            decode(succeeded, &answer).map_err(|error| format!("{program}: {error}"))
        }
        Ok(Err(error)) => Err(format!("{program}: {error}; install it in the daemon's PATH")),
        Err(_) => Err(format!("{program}: no answer within {PATIENCE:?}")),
    }
}

/// A name that cannot lead out of PATH.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Whether it succeeded, and the start of what it said.
async fn run(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read says so by its answer.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(ANSWER_BYTES + 1).read_to_end(&mut answer).await?;
    }
    if answer.len() as u64 > ANSWER_BYTES {
        return Err(std::io::Error::other(format!("it says more than {ANSWER_BYTES} bytes")));
    }
    Ok((child.wait().await?.success(), answer))
}

fn decode(succeeded: bool, answer: &[u8]) -> Result<Option<Credential>, String> {
    if !succeeded {
        let said = crate::image::error::printable(answer.trim_ascii());
        // The words are part of the protocol.
        return if said.contains("credentials not found") {
            Ok(None)
        } else {
            Err(format!("it failed: {said}"))
        };
    }
    // The error's own words may quote the secret.
    let Answer { username, secret } =
        serde_json::from_slice(answer).map_err(|_| "it answered with something else than a credential")?;
    Ok(match username.as_str() {
        TOKEN_USER => Some(Credential::Identity(secret)),
        // What some say of a server that they do not know.
        "" if secret.reveal().is_empty() => None,
        _ => Some(Credential::Password { username, password: secret }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_no_paths() {
        for bad in ["", "../evil", "a/b", "a b", "a;b", "ä", &"x".repeat(65)] {
            assert!(ask(bad, "a.lan").await.unwrap_err().contains("no plain name"), "{bad}");
        }
        let absent = ask("vmlet-test-absent", "a.lan").await.unwrap_err();
        assert!(absent.starts_with("docker-credential-vmlet-test-absent: "), "{absent}");
    }

    #[tokio::test]
    async fn answers_are_bounded() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("helper");
        for (bytes, fits) in [(ANSWER_BYTES, true), (ANSWER_BYTES + 1, false)] {
            let script = format!("#!/bin/sh\ncat > /dev/null\nhead -c {bytes} /dev/zero\n");
            std::fs::write(&helper, script).unwrap();
            std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
            match run(helper.to_str().unwrap(), "a.lan").await {
                Ok((succeeded, answer)) => assert!(fits && succeeded && answer.len() as u64 == bytes),
                Err(error) => assert!(!fits && error.to_string().contains("more than"), "{error}"),
            }
        }
    }

    #[test]
    fn answers() {
        let decoded = decode(true, br#"{"ServerURL": "a", "Username": "u", "Secret": "p"}"#).unwrap();
        let password = Credential::Password { username: "u".to_owned(), password: Secret::new("p") };
        assert_eq!(decoded, Some(password));
        let decoded = decode(true, br#"{"Username": "<token>", "Secret": "t"}"#).unwrap();
        assert_eq!(decoded, Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(decode(false, b"credentials not found in native keychain\n"), Ok(None));
        assert_eq!(decode(true, br#"{"Username": "", "Secret": ""}"#), Ok(None));
        let unnamed = Credential::Password { username: String::new(), password: Secret::new("p") };
        assert_eq!(decode(true, br#"{"Username": "", "Secret": "p"}"#), Ok(Some(unnamed)));
        assert!(decode(false, b"locked\n").unwrap_err().contains("locked"));
        assert!(!decode(true, br#"{"Username": "u", "Secret": 12345"#).unwrap_err().contains("12345"));
    }
}
