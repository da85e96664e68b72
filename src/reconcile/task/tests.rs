//! The loop, with a reconciler that does what a test says.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Counts its looks; each takes its step and then waits for a wake-up.
struct Scripted {
    looks: Arc<AtomicU32>,
    during: fn(&watch::Sender<u64>),
    waker: watch::Sender<u64>,
    /// Whether the step is one that gives way.
    slow: bool,
}

#[async_trait]
impl Reconciler for Scripted {
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        if look == 0 {
            (self.during)(&self.waker);
            if self.slow {
                let step = wake.unless_woken(pending::<()>()).await;
                assert_eq!(step, None, "the step gives way");
            }
        }
        Outcome::Wait(None)
    }

    async fn changed(&mut self) {
        pending().await
    }

    async fn panicked(&mut self, message: &str) -> Outcome {
        panic!("{message}")
    }
}

async fn looks(slow: bool, during: fn(&watch::Sender<u64>)) -> u32 {
    let (waker, receiver) = watch::channel(0);
    let looks = Arc::new(AtomicU32::new(0));
    let scripted = Scripted { looks: looks.clone(), during, waker: waker.clone(), slow };
    let task = tokio::spawn(run(Box::new(scripted), Wake::new(receiver)));
    // The clock stands still until nothing else is to be done.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    task.abort();
    looks.load(Ordering::Relaxed)
}

fn wake_up(waker: &watch::Sender<u64>) {
    waker.send_modify(|count| *count += 1);
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_during_a_look_causes_another() {
    assert_eq!(looks(false, |_| {}).await, 1);
    assert_eq!(looks(false, wake_up).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_that_a_step_gave_way_to_causes_another_look() {
    assert_eq!(looks(true, wake_up).await, 2);
}
