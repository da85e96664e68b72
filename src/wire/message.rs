//! The messages: JSON in frames of kind [`Message`](crate::Kind::Message).

use serde::{Deserialize, Serialize};

/// From the daemon. A request opens the stream that it is sent on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum HostMessage {
    /// Follows the preamble, on the control stream.
    Hello {
        /// [`VERSION`](crate::VERSION).
        version: u32,
    },
    /// On the control stream: a final [`GuestState`] arrived, so the guest need not wait any longer.
    StateSeen,
    /// Opens a stream: runs a process. Answered by `Started` or `Refused`; ends with `Exited`.
    Exec(ExecRequest),
    /// On an exec's stream: its terminal has a new size.
    Resize(TtySize),
    /// On an exec's stream: sends it a signal, by number.
    Signal {
        /// 1 to 64.
        signal: i32,
    },
    /// On an exec's stream: no more input follows.
    StdinClosed,
    /// Opens a stream: follows the workload's output. Answered by `LogsFrom`.
    #[serde(rename_all = "camelCase")]
    Logs {
        /// Where to begin, in bytes of output since the guest's boot.
        from_offset: u64,
    },
    /// Opens a stream: asks for figures. Answered by `Stats`, which ends it.
    Stats,
    /// Opens a stream: asks for the workload's and then the machine's end. Answered by
    /// `ShuttingDown` at once, which ends it.
    #[serde(rename_all = "camelCase")]
    Shutdown {
        /// How long the workload has before it is killed, in seconds.
        grace_seconds: u32,
    },
}

/// From the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum GuestMessage {
    /// Follows the preamble, on the control stream.
    #[serde(rename_all = "camelCase")]
    HelloAck {
        /// [`VERSION`](crate::VERSION) of the guest.
        version: u32,
        /// `/proc/sys/kernel/random/boot_id` of the guest.
        boot_id: String,
        /// Its state now.
        state: GuestState,
    },
    /// On the control stream: the state changed.
    State {
        /// Its state now.
        state: GuestState,
    },
    /// The exec's process runs.
    Started,
    /// The request cannot be served; ends the stream.
    Refused {
        /// Why.
        message: String,
    },
    /// The exec's process ended, and all of its output was sent; ends the stream.
    Exited {
        /// Its exit code, or 128 + the signal that ended it.
        code: i32,
    },
    /// The following output of the log starts at `offset`: later than asked or than what was sent last if
    /// the ring no longer had it. It costs credit like an empty data frame.
    LogsFrom {
        /// In bytes of output since the guest's boot.
        offset: u64,
    },
    /// Answers [`HostMessage::Stats`].
    Stats(GuestStats),
    /// Answers [`HostMessage::Shutdown`].
    ShuttingDown,
}

/// Where a guest is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "phase")]
pub enum GuestState {
    /// The workload is not started yet.
    Starting,
    /// The workload runs; an init system has not reached its default target.
    Running {
        /// The workload's process id in the guest.
        pid: u32,
    },
    /// The workload runs; an init system has reached its default target.
    Ready,
    /// The workload ended, and the guest is about to power off.
    Exited {
        /// Its exit code, or 128 + the signal that ended it.
        code: i32,
    },
    /// The workload could not be started, and the guest is about to power off.
    Failed {
        /// What happened.
        message: String,
    },
}

impl GuestState {
    /// Whether the guest is about to power off.
    pub fn is_final(&self) -> bool {
        matches!(self, GuestState::Exited { .. } | GuestState::Failed { .. })
    }
}

/// A process to run beside the workload. With an init system it runs in the init's namespaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, added to the workload's.
    #[serde(default)]
    pub env: Vec<String>,
    /// An absolute path; the workload's when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `user`, `user:group`, or numbers; the workload's when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Gives it a terminal of this size. Its output is then all on stdout.
    #[serde(default)]
    pub tty: Option<TtySize>,
    /// Whether input follows; otherwise it reads an end of file.
    #[serde(default)]
    pub stdin: bool,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub cols: u16,
}

/// Figures of a guest, in bytes unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestStats {
    /// Since boot, in milliseconds.
    pub uptime_ms: u64,
    /// The load average over one minute, times 100.
    pub load_centi: u32,
    /// All of its memory.
    pub memory_total: u64,
    /// What could be allocated without swapping (`MemAvailable`).
    pub memory_available: u64,
    /// The size of the private disk's file system.
    pub disk_total: u64,
    /// What is used of it.
    pub disk_used: u64,
    /// Received by its network device.
    pub network_received: u64,
    /// Sent by its network device.
    pub network_sent: u64,
}
