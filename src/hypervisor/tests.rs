use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::process::{self, ExitStatus, parse_start_time};
use super::*;

#[test]
fn start_time_is_found_behind_any_name() {
    let fields = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 22 33";
    for name in ["sh", "a b", ") S 1 (", "((", "a)b 1 2 3"] {
        assert_eq!(parse_start_time(&format!("77 ({name}) {fields}\n")), Some(4711), "{name}");
    }
    assert_eq!(parse_start_time("77 (sh) S 1 1"), None);
    assert_eq!(parse_start_time(""), None);
}

/// A process that lives until its input ends.
fn cat() -> (Child, ProcessIdentity) {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
    let identity = ProcessIdentity::of(child.id()).expect("proc is readable").expect("it lives");
    (child, identity)
}

#[tokio::test]
async fn a_childs_end_is_noticed_with_its_code() {
    let (mut child, identity) = cat();
    assert!(process::alive(&identity));
    drop(child.stdin.take());
    let status = process::wait(&identity).await.expect("pidfds work");
    assert_eq!(status, ExitStatus { code: Some(0), signal: None });
    assert!(!process::alive(&identity));
    assert_eq!(process::wait(&identity).await.expect("pidfds work"), ExitStatus::default());
}

#[tokio::test]
async fn a_killed_child_is_gone_and_killing_again_is_fine() {
    let (_child, identity) = cat();
    process::kill(&identity).await.expect("it may be killed");
    assert!(!process::alive(&identity));
    process::kill(&identity).await.expect("gone is fine");
}

#[tokio::test]
async fn another_process_with_the_same_number_is_left_alone() {
    let (mut child, identity) = cat();
    for other in [
        ProcessIdentity { start_time: identity.start_time + 1, ..identity.clone() },
        ProcessIdentity { boot_id: "another boot".to_owned(), ..identity.clone() },
        ProcessIdentity { pid: 0, ..identity.clone() },
        ProcessIdentity { pid: u32::MAX, ..identity.clone() },
    ] {
        assert!(!process::alive(&other));
        process::kill(&other).await.expect("gone is fine");
        assert_eq!(process::wait(&other).await.expect("pidfds work"), ExitStatus::default());
    }
    assert!(process::alive(&identity));
    child.kill().expect("it may be killed");
    process::wait(&identity).await.expect("pidfds work");
}

#[tokio::test]
async fn a_process_of_an_earlier_daemon_is_waited_for() {
    // The shell ends at once and leaves its background process to init.
    let mut shell = Command::new("sh")
        .args(["-c", "exec 3<&0; cat <&3 >/dev/null & echo $!"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut pid = String::new();
    BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut pid).expect("a pid");
    let input = shell.stdin.take();
    let pid = pid.trim().parse().expect("a number");
    let identity = ProcessIdentity::of(pid).expect("proc is readable").expect("it lives");
    shell.wait().expect("the shell ends");
    assert!(process::alive(&identity));
    let (status, ()) = tokio::join!(process::wait(&identity), async { drop(input) });
    assert_eq!(status.expect("pidfds work"), ExitStatus::default());
    assert!(!process::alive(&identity));
}

#[tokio::test]
async fn a_zombie_counts_as_gone() {
    let (mut child, _) = cat();
    drop(child.stdin.take());
    let identity = ProcessIdentity::of(child.id()).expect("proc is readable").expect("not reaped yet");
    let pid = Pid::from_raw(child.id() as i32);
    let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid.expect("not zero")), unreaped).expect("it ends");
    assert!(!process::alive(&identity));
    assert_eq!(process::wait(&identity).await.expect("pidfds work").code, Some(0));
}
