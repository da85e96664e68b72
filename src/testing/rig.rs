//! A scripted [`Host`] and a store without a daemon: for tests of one part of the engine.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::life::calendar;
use super::timeline::Teller;
use super::{EffectScript, Host, Options};
use crate::manifest::FileState;
use crate::object::ObjectKey;
use crate::reconcile::{Clock, Entropy, Parts, Settings};
use crate::store::{Declared, MemoryBackend, Origin, Store, StoreSettings};

/// Nothing fails in it but what is scripted. For a runtime whose clock is paused.
pub(crate) struct Rig {
    host: Host,
    pub(crate) store: Store,
    pub(crate) backend: MemoryBackend,
    pub(crate) settings: Settings,
    clock: Clock,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let host = Host::new();
        let clock = Clock::simulated(calendar(std::time::Duration::ZERO));
        let told = clock.clone();
        let timed = StoreSettings { now: Arc::new(move || told.now()), ..StoreSettings::default() };
        let (store, backend) = Store::in_memory_with(timed);
        let settings = Options::default().settings;
        host.begin(Some(backend.durable()), settings.retention);
        host.0.lock().tells = true;
        Rig { host, store, backend, settings, clock }
    }

    pub(crate) fn parts(&self) -> Parts {
        self.host.parts(self.clock.clone(), Entropy::seeded(1))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn script(&self, effect: &str, script: EffectScript) {
        self.host.script_effect(effect, script);
    }

    /// The effects on the world so far, each as `name` or `name: how it failed`.
    pub(crate) fn effects(&self) -> Vec<String> {
        let world = self.host.0.lock();
        let effects = world.timeline.iter().filter(|entry| entry.teller == Teller::World);
        effects.map(|entry| entry.text.clone()).collect()
    }

    /// Declares the one object of a manifest, or edits it.
    pub(crate) async fn declare(&self, manifest: &str) -> ObjectKey {
        let FileState::Good(objects) = FileState::of(Path::new("/m/a.yaml"), manifest.as_bytes()) else {
            panic!("no manifest: {manifest}")
        };
        let object = objects[0].object.clone();
        let key = object.key();
        let origin = Origin { source: "directory:/m".to_owned(), path: "a.yaml".into(), line: 1 };
        let declared = self.store.declare(object, origin, false, self.now()).await.expect("it is sound");
        assert!(matches!(declared, Declared::Created { .. } | Declared::Updated { .. }), "{declared:?}");
        key
    }
}
