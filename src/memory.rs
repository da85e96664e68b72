//! Memory that was needed for a moment goes back to the host.
//!
//! glibc keeps what is freed, for the next time it is needed. After a burst (a start with a thousand VMs, an
//! image that is built) that is as much as the daemon lives on, and the host's VMs could have it.

use std::time::Duration;

use tokio::time::timeout;

use crate::store::Store;

/// A daemon is at rest when nothing has changed for so long.
const REST: Duration = Duration::from_secs(3);

/// Gives back what is free, each time that the daemon comes to rest. Runs for ever.
pub async fn give_back_at_rest(store: Store) {
    loop {
        let Ok(mut changes) = store.watch(None) else { continue };
        while let Ok(Ok(_)) = timeout(REST, changes.next()).await {}
        let given = tokio::task::spawn_blocking(give_back).await;
        debug_assert!(given.is_ok(), "it does not panic");
        // A watch that has expired has missed changes, and begins anew.
        let _ = changes.next().await;
    }
}

/// Takes milliseconds, and holds up who allocates meanwhile for a part of that.
fn give_back() {
    // SAFETY: it may be called at any time, from any thread (malloc_trim(3)).
    unsafe { nix::libc::malloc_trim(0) };
}
