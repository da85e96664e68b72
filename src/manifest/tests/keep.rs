use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::*;
use crate::reconcile::Clock;
use crate::store::{Event, EventWatch, Severity, Store, Subject};

const ROOT: &str = "/m";

fn snapshot(text: &str) -> Arc<Snapshot> {
    let path = PathBuf::from("new.yaml");
    let decoded = decode(&Path::new(ROOT).join(&path), text.as_bytes());
    let state = if decoded.diagnostics.is_empty() {
        FileState::Good(Arc::new(decoded.objects))
    } else {
        FileState::Broken(Arc::new(Broken::new(decoded.diagnostics, text.as_bytes())))
    };
    Arc::new(Snapshot { complete: true, files: BTreeMap::from([(path, state)]), trouble: Vec::new() })
}

async fn next(events: &mut EventWatch) -> Event {
    timeout(Duration::from_secs(10), events.next()).await.expect("an event comes").unwrap()
}

#[tokio::test]
async fn errors_of_a_file_without_objects_are_events_of_the_file() {
    let (store, _) = Store::in_memory();
    let mut events = store.watch_events();
    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let start = |store: Store, snapshots| {
        let cancel = CancellationToken::new();
        let (keeper, guard) = (cancel.clone(), MassDeleteSettings::default());
        let (ready, _) = watch::channel(Readiness::default());
        tokio::spawn(async move {
            keep(store, Path::new(ROOT), snapshots, guard, ready, Clock::Host, keeper).await
        });
        cancel
    };
    let cancel = start(store.clone(), snapshots.clone());
    sender.send_replace(snapshot("apiVersion: vmlet.dev/v1alpha1\nkind: VMM\n"));
    let event = next(&mut events).await;
    let file = Subject::Manifest { path: "/m/new.yaml".into() };
    assert_eq!(
        (&event.subject, event.severity, event.reason.as_str()),
        (&file, Severity::Warning, "InvalidManifest")
    );
    assert_eq!(event.message, "/m/new.yaml:2:7: kind \"VMM\" is unknown (did you mean `VM`?)");
    assert_eq!(broken_files(&store.events(None)).into_keys().collect::<Vec<_>>(), [Path::new("/m/new.yaml")]);
    sender.send_replace(snapshot(""));
    assert_eq!(next(&mut events).await.reason, "ManifestGood");
    sender.send_replace(snapshot("apiVersion: vmlet.dev/v1alpha1\nkind: VMM\n"));
    assert_eq!(next(&mut events).await.reason, "InvalidManifest");
    // The next daemon knows, and says so when it is mended.
    cancel.cancel();
    let _cancel = start(store.clone(), snapshots);
    sender.send_replace(snapshot(""));
    let event = next(&mut events).await;
    assert_eq!((&event.subject, event.reason.as_str()), (&file, "ManifestGood"));
    assert_eq!(broken_files(&store.events(None)), BTreeMap::new());
}
