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
    at_rest(&store, give_back).await;
}

/// Does something each time that nothing has changed for [`REST`]; then not again before something changes.
async fn at_rest(store: &Store, act: impl Fn() + Clone + Send + 'static) {
    loop {
        let mut changes = store.watch(None).expect("changes from now on are there");
        while let Ok(Ok(_)) = timeout(REST, changes.next()).await {}
        let acted = tokio::task::spawn_blocking(act.clone()).await;
        debug_assert!(acted.is_ok(), "it does not panic");
        // A watch that has expired has missed changes, and begins anew.
        let _ = changes.next().await;
    }
}

/// Takes milliseconds, and holds up who allocates meanwhile for a part of that.
fn give_back() {
    // SAFETY: it may be called at any time, from any thread (malloc_trim(3)).
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jiff::Timestamp;
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::object::AnyObject;
    use crate::store::Origin;

    /// A store, and how often something was done at rest.
    fn watched() -> (Store, Arc<AtomicUsize>) {
        let (store, _) = Store::in_memory();
        let (count, of) = (Arc::new(AtomicUsize::new(0)), store.clone());
        let counted = Arc::clone(&count);
        let act = move || _ = counted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move { at_rest(&of, act).await });
        (store, count)
    }

    async fn change(store: &Store, label: u32) {
        let object = json!({
            "apiVersion": crate::object::API_VERSION, "kind": "VM",
            "metadata": {"name": "web", "labels": {"on": label.to_string()}}, "spec": {"image": {"name": "base"}}
        });
        let object = AnyObject::Vm(serde_json::from_value(object).unwrap());
        let origin = Origin { source: "directory:/m".to_owned(), path: PathBuf::from("web.yaml"), line: 1 };
        store.declare(object, origin, false, Timestamp::UNIX_EPOCH).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_once_for_each_rest() {
        let (store, count) = watched();
        let times = || count.load(Ordering::SeqCst);
        sleep(REST / 2).await;
        assert_eq!(times(), 0, "given back before it was known to be at rest");
        sleep(REST).await;
        assert_eq!(times(), 1, "not given back at the first rest");
        sleep(REST * 100).await;
        assert_eq!(times(), 1, "given back again, though nothing had happened");
        change(&store, 0).await;
        sleep(REST / 2).await;
        assert_eq!(times(), 1, "given back as soon as something happened");
        sleep(REST).await;
        assert_eq!(times(), 2, "not given back at the second rest");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_not_given_back_while_things_change() {
        let (store, count) = watched();
        for label in 0..20 {
            change(&store, label).await;
            sleep(REST * 2 / 3).await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 0, "given back in the middle of the work");
        sleep(REST).await;
        assert_eq!(count.load(Ordering::SeqCst), 1, "not given back after the work");
    }
}
