//! Sessions on a terminal: `vmlet exec -it` and `vmlet console`.

use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::host::{Host, Net, vm};

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_the_guest_the_users_terminal() {
    let mut host = Host::start(Net::User).await;
    host.write("vm.yaml", &[vm("desk", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    host.ready("desk").await;
    let mut terminal = host.terminal(&["exec", "-it", "desk", "--", "sh"], (33, 101));
    let before = terminal.modes();
    assert!(!terminal.is_raw());
    terminal.expect("# ");
    assert!(terminal.is_raw());
    // The guest's echo is not what is waited for: it has the quotes.
    terminal.press("echo si''ze: $(stty size); tty\n");
    terminal.expect("size: 33 101\r\n/dev/pts/");
    terminal.resize((40, 132));
    terminal.press("until [ \"$(stty size)\" = '40 132' ]; do :; done; echo re''sized\n");
    terminal.expect("resized");
    // It says so itself: by then it is what the terminal sends its signals to.
    terminal.press("sh -c 'echo sl\"\"eeping; exec sleep 1000'\n");
    terminal.expect("sleeping\r\n");
    terminal.press("\x03");
    terminal.expect("# ");
    terminal.press("echo co''de $?\n");
    terminal.expect("code 130");
    terminal.press("exit 7\n");
    let (status, _) = terminal.end();
    assert_eq!(status.code(), Some(7));
    assert_eq!(terminal.modes(), before);

    // Whoever ends the session from outside finds the terminal as it was, and nothing left in the guest.
    let mut terminal = host.terminal(&["exec", "-it", "desk", "--", "sh"], (24, 80));
    terminal.press("");
    terminal.expect("# ");
    terminal.press("sleep 4321\n");
    terminal.expect("sleep 4321");
    kill(terminal.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(terminal.end().0.code(), Some(128 + 15));
    assert_eq!(terminal.modes(), before);
    host.exec("desk", &["sh", "-c", "while ps | grep -q '[s]leep 4321'; do :; done"]);
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_attached_until_the_escape_key() {
    let mut host = Host::start(Net::User).await;
    host.write("vm.yaml", &[vm("desk", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    host.ready("desk").await;
    let mut terminal = host.terminal(&["console", "desk"], (24, 80));
    let before = terminal.modes();
    terminal.expect("Ctrl-] detaches");
    host.exec("desk", &["sh", "-c", "echo from the guest > /dev/console"]);
    terminal.expect("from the guest");
    assert!(terminal.is_raw());
    // This terminal does not echo: what is seen comes back from the guest's.
    terminal.press("from the user\r");
    terminal.expect("from the user");
    let read = host.exec("desk", &["sh", "-c", "read -r line < /dev/console; echo \"$line\""]);
    assert_eq!(read, "from the user");
    terminal.press("\x1d");
    let (status, rest) = terminal.end();
    assert!(status.success(), "{status}: {rest}");
    assert_eq!(terminal.modes(), before);
    // Not on a terminal it prints the log.
    let log = host.vmlet(&["console", "desk"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("from the guest"), "{log:?}");
    host.assert_host_is_clean().await;
}
