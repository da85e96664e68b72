//! What executes guest code: the processor through KVM, or QEMU's translator.

use std::path::Path;
use std::time::{Duration, Instant};

use super::kvm_probe;

/// The setting `accelerator`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorSetting {
    /// KVM if it works, else TCG.
    #[default]
    Auto,
    /// KVM, untested.
    Kvm,
    /// TCG.
    Tcg,
}

/// What runs guest code, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator: works everywhere, slower.
    Tcg {
        /// Why not KVM.
        why: String,
    },
}

/// A line for `vmlet doctor` and the log.
impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Accelerator::Kvm => f.write_str("kvm: guests run on the processor"),
            Accelerator::Tcg { why } => write!(f, "tcg: guests are emulated, because {why}"),
        }
    }
}

/// Decides once, for the daemon's life: takes up to 1.5 s if KVM does not work. `helper` is the
/// binary that knows the hidden subcommands, this very one.
pub async fn choose(setting: AcceleratorSetting, helper: &Path) -> Accelerator {
    match setting {
        AcceleratorSetting::Kvm => Accelerator::Kvm,
        AcceleratorSetting::Tcg => Accelerator::Tcg { why: "the settings say so".to_owned() },
        AcceleratorSetting::Auto => match kvm_probe::probe(helper).await {
            Ok(()) => Accelerator::Kvm,
            Err(why) => Accelerator::Tcg { why },
        },
    }
}

/// The rate of this host's time stamp counter in kHz, which TCG guests see as their own.
///
/// Guests that cannot measure it early in the boot hang (`microvm` has no second timer), so they
/// are told. Measured over 20 ms against the monotonic clock, good to some parts in a million.
pub(super) fn tsc_khz() -> u64 {
    const WINDOW: Duration = Duration::from_millis(20);
    let (ticks, started) = (tsc(), Instant::now());
    std::thread::sleep(WINDOW);
    let (ticks, elapsed) = (tsc() - ticks, started.elapsed());
    (u128::from(ticks) * 1_000_000 / elapsed.as_nanos()) as u64
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; Linux lets user space use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
