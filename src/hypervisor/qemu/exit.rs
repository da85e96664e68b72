//! How a VM ended, from what QEMU and the guest left in their logs.
//!
//! The console is the guest's to write: anything in it is a claim of the guest, of bounded length.

use vmlet_wire::EXIT_LINE;

use crate::hypervisor::VmmExit;
use crate::hypervisor::process::ExitStatus;

/// How much of a console's end is looked at, in bytes: a panic prints its trace after its first line.
pub(super) const CONSOLE_TAIL: u64 = 64 << 10;
/// How much of QEMU's own words is kept, in bytes.
pub(super) const LOG_TAIL: u64 = 4 << 10;

const PANIC: &str = "Kernel panic - not syncing";
/// The longest panic line that is quoted, in characters.
const MAX_PANIC: usize = 300;

/// Composes the end of a VM from the ends of its logs.
pub(super) fn compose(status: ExitStatus, vmm_log: &[u8], console: &[u8]) -> VmmExit {
    let message = match panic_line(console) {
        Some(panic) => format!("the guest's kernel panicked: {panic}"),
        None if vmm_log.is_empty() => last_words(console).unwrap_or_default(),
        None => printable(vmm_log),
    };
    VmmExit { code: status.code, signal: status.signal, workload: workload_exit(console), message }
}

/// The exit code in the last whole [`EXIT_LINE`]. The kernel may have left a line unfinished before it.
pub(super) fn workload_exit(console: &[u8]) -> Option<i32> {
    let console = String::from_utf8_lossy(console);
    let (code, rest) = console.rsplit_once(EXIT_LINE)?.1.split_once(['\r', '\n'])?;
    let _ = rest;
    code.parse().ok()
}

/// What the guest said of a failure right before its [`EXIT_LINE`].
fn last_words(console: &[u8]) -> Option<String> {
    let console = String::from_utf8_lossy(console);
    let line = console[..console.rfind(EXIT_LINE)?].trim_end().lines().next_back()?;
    let words = line.strip_prefix("vmlet-guest: cannot ")?;
    Some(printable(format!("the guest cannot {words}").as_bytes()).chars().take(MAX_PANIC).collect())
}

/// The first line of the last panic, without what precedes its text.
pub(super) fn panic_line(console: &[u8]) -> Option<String> {
    let console = String::from_utf8_lossy(console);
    let line = console[console.rfind(PANIC)?..].lines().next()?;
    Some(printable(line.as_bytes()).chars().take(MAX_PANIC).collect())
}

/// One line that is safe in a status or on a terminal: line breaks become `; `, control characters go.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>());
    let lines: Vec<String> =
        lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
