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

impl Accelerator {
    /// `kvm` or `tcg`.
    pub fn name(&self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg { .. } => "tcg",
        }
    }
}

/// A line for `vmlet doctor` and the log.
impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Accelerator::Kvm => write!(f, "{}: guests run on the processor", self.name()),
            Accelerator::Tcg { why } => write!(f, "{}: guests are emulated, because {why}", self.name()),
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
/// are told. Measured over 20 ms against the monotonic clock: a guest's clock runs as wrong as this is.
pub(super) fn tsc_khz() -> u64 {
    const WINDOW: Duration = Duration::from_millis(20);
    let base = Instant::now();
    let mut clock = || base.elapsed();
    let first = Reading::take(&mut clock, tsc);
    std::thread::sleep(WINDOW);
    Reading::take(&mut clock, tsc).rate_since(&first)
}

/// What the counter said, and when.
#[derive(Clone, Copy)]
struct Reading {
    ticks: u64,
    at: Duration,
}

impl Reading {
    /// Of some readings the one that the clock encloses the closest: on a busy machine a thread
    /// stands still between two instructions for longer than the whole measurement.
    fn take(clock: &mut impl FnMut() -> Duration, mut counter: impl FnMut() -> u64) -> Reading {
        const READINGS: usize = 16;
        let mut read = || {
            let (before, ticks, after) = (clock(), counter(), clock());
            (after - before, Reading { ticks, at: before + (after - before) / 2 })
        };
        let mut best = read();
        for _ in 1..READINGS {
            let next = read();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }

    fn rate_since(&self, earlier: &Reading) -> u64 {
        (u128::from(self.ticks - earlier.ticks) * 1_000_000 / (self.at - earlier.at).as_nanos()) as u64
    }
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; Linux lets user space use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A clock and a counter of 2 GHz that both stand on one time, which each look at them moves.
    fn on_a_busy_machine(pauses: &[u64]) -> u64 {
        let (now, looks) = (Cell::new(0), Cell::new(0));
        let look = || {
            // 25 ns for a look, and now and then the scheduler's pause.
            let pause = pauses.get(looks.get() % 64).copied().unwrap_or(0);
            looks.set(looks.get() + 1);
            now.set(now.get() + 25 + pause);
            now.get()
        };
        let mut clock = || Duration::from_nanos(look());
        let first = Reading::take(&mut clock, || 2 * look());
        now.set(now.get() + 20_000_000);
        Reading::take(&mut clock, || 2 * look()).rate_since(&first)
    }

    #[test]
    fn a_thread_that_stands_still_while_it_measures_does_not_spoil_the_rate() {
        assert_eq!(on_a_busy_machine(&[]), 2_000_000);
        for place in 0..64 {
            let mut pauses = [0; 64];
            // Two pauses, each of 8 ms, anywhere.
            pauses[place] = 8_000_000;
            pauses[(place * 7 + 3) % 64] = 8_000_000;
            let khz = on_a_busy_machine(&pauses);
            assert!((1_999_900..=2_000_100).contains(&khz), "{place}: {khz} kHz");
        }
    }
}
