//! The gate: nothing runs before its whole command arrived, and then exactly that runs, with nothing kept.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use vmlet::hypervisor::gate::{self, Gate, User};
use vmlet::hypervisor::process;

use crate::support::{HELPER, VMM_USER};

/// A command that leaves what it sees in `seen`, in its folder.
fn command(dir: &Path, script: &str) -> gate::Command {
    gate::Command {
        program: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        dir: dir.to_owned(),
        files: vec![],
        user: None,
        open_files: 64,
    }
}

fn log(dir: &Path) -> File {
    File::create(dir.join("log")).expect("a log")
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is made writable");
    dir
}

#[tokio::test]
async fn a_released_process_keeps_its_identity_and_nothing_else() {
    let dir = folder();
    fs::write(dir.path().join("secret"), "for root alone").expect("written");
    fs::set_permissions(dir.path().join("secret"), fs::Permissions::from_mode(0o600)).expect("closed");
    // The descriptors are listed by the shell alone (the last is the listing's own): for a pipe or a file it has
    // more open for a moment.
    let script = "exec > seen; echo $$; cat; id -u; id -g; id -G; pwd; cat <&3; echo; for fd in /proc/$$/fd/*; do printf '%s ' ${fd##*/}; done; echo; \
                  ulimit -n; ulimit -c; umask; env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; \
                  cut -d ' ' -f 6 /proc/$$/stat";
    let mut command = command(dir.path(), script);
    command.files = vec![dir.path().join("secret")];
    command.user = Some(User { uid: VMM_USER, gid: VMM_USER, groups: vec![] });
    let gate = Gate::spawn(Path::new(HELPER), log(dir.path())).expect("it starts");
    let identity = gate.process().clone();
    assert!(process::alive(&identity));
    gate.release(&command).await.expect("it opens");
    let status = process::wait(&identity).await.expect("it ends");
    assert_eq!(status.code, Some(0), "{:?}", fs::read_to_string(dir.path().join("log")));
    let (pid, user) = (identity.pid.to_string(), VMM_USER.to_string());
    let seen = fs::read_to_string(dir.path().join("seen")).expect("it wrote");
    // The shell's own redirection is descriptor 1; its group is VMM_USER; its session is its own.
    let expected = [
        pid.as_str(),
        &user,
        &user,
        &user,
        dir.path().to_str().expect("text"),
        "for root alone",
        "0 1 2 3 4 ",
        "64",
        "0",
        "0077",
        pid.as_str(),
    ];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_dropped_gate_leaves_no_process() {
    let dir = folder();
    let gate = Gate::spawn(Path::new(HELPER), log(dir.path())).expect("it starts");
    let identity = gate.process().clone();
    drop(gate);
    assert!(!process::alive(&identity));
    assert_eq!(process::wait(&identity).await.expect("it is reaped"), process::ExitStatus::default());
}

/// What a gate does with this input, whose end is the death of its daemon.
fn fed(dir: &Path, input: &[u8]) -> std::process::Output {
    let mut gate = Command::new(HELPER)
        .arg(gate::SUBCOMMAND)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // A gate that refuses its input early closes it.
    let _ = gate.stdin.take().expect("piped").write_all(input);
    gate.wait_with_output().expect("it ends")
}

#[test]
fn a_gate_whose_daemon_dies_ends_without_effects() {
    let dir = folder();
    let body = serde_json::to_vec(&command(dir.path(), "echo > effect")).expect("plain data");
    let message = [(body.len() as u32).to_be_bytes().as_slice(), &body].concat();
    for length in (0..message.len()).step_by(7).chain([3, 4, message.len() - 1]) {
        let output = fed(dir.path(), &message[..length]);
        assert!(output.status.success() && output.stderr.is_empty(), "{length}: {output:?}");
        assert!(!dir.path().join("effect").exists(), "{length}");
    }
    assert!(fed(dir.path(), &message).status.success());
    assert!(dir.path().join("effect").exists());
}

#[test]
fn a_gate_that_cannot_obey_says_why() {
    let dir = folder();
    let say = |command: &gate::Command| {
        let body = serde_json::to_vec(command).expect("plain data");
        let output = fed(dir.path(), &[(body.len() as u32).to_be_bytes().as_slice(), &body].concat());
        assert_eq!(output.status.code(), Some(127));
        String::from_utf8(output.stderr).expect("text")
    };
    let good = command(dir.path(), "true");
    let absent = gate::Command { program: "/absent/qemu".into(), ..good.clone() };
    assert!(say(&absent).contains("cannot execute /absent/qemu"));
    let absent = gate::Command { files: vec!["/absent/disk".into()], ..good.clone() };
    assert!(say(&absent).contains("cannot open /absent/disk"));
    let absent = gate::Command { dir: "/absent/folder".into(), ..good };
    assert!(say(&absent).contains("cannot enter /absent/folder"));
    let output = fed(dir.path(), &u32::MAX.to_be_bytes());
    assert!(String::from_utf8_lossy(&output.stderr).contains("at most"), "{output:?}");
    let output = fed(dir.path(), b"\0\0\0\x02[]");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a command"), "{output:?}");
}
