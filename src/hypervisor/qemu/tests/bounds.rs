//! What a VMM may make the daemon read: by value, since each refusal has words of its own.

use super::{GREETING, lines, qmp};

/// What the third line, in answer to the command, is refused for.
async fn refusal(answer: String) -> String {
    let answers = lines([GREETING, r#"{"return": {}}"#, &answer]);
    qmp(answers).await.expect_err("it is refused").to_string()
}

fn event(pad: usize) -> String {
    format!(r#"{{"event": "{}"}}"#, "X".repeat(pad))
}

#[tokio::test(start_paused = true)]
async fn lines_are_read_to_a_bound() {
    let empty = event(0).len();
    let longest = (64 << 10) - 1 - empty;
    let answer = format!("{}\n{{\"return\": {{\"a\": 1}}}}", event(longest));
    let read = qmp(lines([GREETING, r#"{"return": {}}"#, &answer])).await.expect("it is read");
    assert_eq!(read["a"], 1);
    let told = refusal(format!("{}\n{{\"return\": {{}}}}", event(longest + 1))).await;
    assert_eq!(told, "QEMU broke the QMP protocol: a line over 64 KiB");
}

#[tokio::test(start_paused = true)]
async fn events_are_read_to_a_bound() {
    let after = |events: usize| format!("{}{{\"return\": {{}}}}", format!("{}\n", event(1)).repeat(events));
    assert!(qmp(lines([GREETING, r#"{"return": {}}"#, &after(999)])).await.is_ok());
    assert_eq!(refusal(after(1000)).await, "QEMU broke the QMP protocol: events without end");
}

#[tokio::test(start_paused = true)]
async fn words_of_a_refusal_are_harmless_and_short() {
    let long = format!(r#"{{"error": {{"class": "X", "desc": "no\u001b[31m{}"}}}}"#, "x".repeat(1000));
    let told = refusal(long).await;
    assert_eq!(told, format!("QEMU refused system_powerdown: no[31m{}", "x".repeat(494)));
}
