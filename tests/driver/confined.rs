//! What a daemon was given by its service manager, or leaked, does not reach its VMMs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use vmlet::hypervisor::gate;

use crate::support::HELPER;

/// What `script` prints when a gate becomes it whose daemon did `before`.
fn printed(dir: &Path, before: &str, script: &str, open_files: u64) -> String {
    let command = gate::Command {
        program: "/bin/sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        dir: dir.to_owned(),
        files: vec![],
        user: None,
        open_files,
    };
    let body = serde_json::to_vec(&command).expect("plain data");
    let mut gate = Command::new("sh")
        .args(["-c", &format!("{before}; exec \"$0\" {}", gate::SUBCOMMAND), HELPER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = gate.stdin.take().expect("piped");
    input.write_all(&(body.len() as u32).to_be_bytes()).expect("it reads");
    input.write_all(&body).expect("it reads");
    drop(input);
    let output = gate.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

#[test]
fn protection_from_the_out_of_memory_killer_is_not_inherited() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let score = |given: &str| {
        let before = format!("echo {given} > /proc/self/oom_score_adj");
        printed(dir.path(), &before, "cat /proc/self/oom_score_adj", 64)
    };
    assert_eq!(score("300"), "300", "what makes a VM go first stays");
    let protect = Command::new("sh").args(["-c", "echo -500 > /proc/self/oom_score_adj"]).output();
    if !protect.expect("it starts").status.success() {
        eprintln!("SKIPPED: nobody may protect a process from the killer here (no CAP_SYS_RESOURCE)");
        return;
    }
    assert_eq!(score("-500"), "0", "a VM is not spared for the daemon's sake");
}

#[test]
fn limits_only_go_down() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let limits = "ulimit -Hn; ulimit -Sn; ulimit -Hc";
    assert_eq!(printed(dir.path(), "ulimit -n 48", limits, 64), "48\n48\n0", "the daemon's own is lower");
    assert_eq!(printed(dir.path(), "ulimit -n 128", limits, 64), "64\n64\n0");
}

#[test]
fn leaked_descriptors_and_privileges_do_not_reach_a_vmm() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // By the shell alone: for a pipe or a file it has more open for a moment.
    let script = "for fd in /proc/$$/fd/*; do printf '%s ' ${fd##*/}; done; echo; grep NoNewPrivs /proc/$$/status; readlink /proc/$$/fd/0; \
                  cut -d ' ' -f 6 /proc/$$/stat; echo $$";
    let seen = printed(dir.path(), "exec 9</etc/passwd 7</etc/passwd", script, 64);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "0 1 2 3 ", "3 is the listing's own");
    assert_eq!(lines[1], "NoNewPrivs:\t1", "set-user-id programs give it nothing");
    assert_eq!(lines[2], "/dev/null", "the daemon's pipe is not its input");
    assert_eq!(lines[3], lines[4], "a signal to the daemon's session does not reach it");
}
