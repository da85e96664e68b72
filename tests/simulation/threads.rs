//! Runs many simulations, on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// No simulation takes so long, however busy the machine is: it hangs.
const HANGS: Duration = Duration::from_secs(300);

/// Runs `test` for every number, and returns what failed, in order.
pub(crate) fn each(
    numbers: Range<u64>,
    test: impl Fn(u64) -> Result<(), String> + Sync,
) -> Vec<(u64, String)> {
    static QUIET: Once = Once::new();
    QUIET.call_once(quieten);
    let next = AtomicU64::new(numbers.start);
    let (failed, under_way) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let done = AtomicBool::new(false);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return;
            }
            under_way.lock().unwrap().insert(number, Instant::now());
            let outcome = catch_unwind(AssertUnwindSafe(|| test(number)));
            under_way.lock().unwrap().remove(&number);
            if let Err(why) = outcome.unwrap_or_else(|_| Err("it panicked".to_owned())) {
                failed.lock().unwrap().push((number, why));
            }
        }
    };
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| watch_over(&under_way, &done));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        guard.thread().unpark();
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    failed
}

/// Says nothing of panics that a script asked for: there are thousands, and a backtrace takes longer than a
/// simulation.
fn quieten() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.payload().downcast_ref::<&str>().copied());
        let scripted = text.is_some_and(|text| text.ends_with("as scripted"));
        if !scripted {
            loud(panic);
        }
    }));
}

/// Ends the process if a simulation hangs: a loop that never rests cannot be stopped from outside.
fn watch_over(under_way: &Mutex<BTreeMap<u64, Instant>>, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let hangs =
            under_way.lock().unwrap().iter().find(|(_, since)| since.elapsed() > HANGS).map(|(n, _)| *n);
        if let Some(number) = hangs {
            eprintln!("number {number} hangs: its loop never rests");
            std::process::abort();
        }
        std::thread::park_timeout(Duration::from_secs(1));
    }
}
