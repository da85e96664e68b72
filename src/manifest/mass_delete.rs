//! Holds back a deletion of many objects at once. In: the deletions that are wanted, and when. Out: why they
//! must wait, or nothing. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::object::ObjectKey;

/// How many deletions at once are suspicious.
#[derive(Clone, Copy, Debug)]
pub struct MassDeleteSettings {
    /// More than this share of the source's objects, in percent …
    pub percent: u8,
    /// … and more than this many objects …
    pub objects: usize,
    /// … are deleted only once the same deletions have been wanted for this long. None: at once.
    pub confirm_after: Option<Duration>,
}

impl Default for MassDeleteSettings {
    fn default() -> Self {
        MassDeleteSettings { percent: 50, objects: 5, confirm_after: Some(Duration::from_secs(30)) }
    }
}

/// Holds back a mass deletion until it has lasted: a wrong mount or checkout is noticed and mended sooner.
#[derive(Clone, Debug, Default)]
pub struct MassDeleteGuard {
    settings: MassDeleteSettings,
    /// The deletions held back, and since when.
    pending: Option<(BTreeSet<ObjectKey>, Instant)>,
}

impl MassDeleteGuard {
    /// A guard for one source.
    pub fn new(settings: MassDeleteSettings) -> Self {
        MassDeleteGuard { settings, pending: None }
    }

    /// When to call [`changes`](super::changes) again although nothing changed, if deletions are held back.
    pub fn due(&self) -> Option<Instant> {
        let (_, since) = self.pending.as_ref()?;
        Some(*since + self.settings.confirm_after?)
    }

    /// Nothing can be said of deletions now: those that are held back begin anew.
    pub(super) fn forget(&mut self) {
        self.pending = None;
    }

    /// Why these deletions must wait.
    pub(super) fn refusal(
        &mut self,
        deletions: &BTreeSet<ObjectKey>,
        alive: usize,
        now: Instant,
    ) -> Option<String> {
        let MassDeleteSettings { percent, objects, confirm_after } = self.settings;
        let mass = deletions.len() > objects && deletions.len() * 100 > alive * usize::from(percent);
        let Some(confirm_after) = confirm_after.filter(|_| mass) else {
            self.pending = None;
            return None;
        };
        let since = match &self.pending {
            Some((pending, since)) if pending == deletions => *since,
            _ => now,
        };
        if now.saturating_duration_since(since) >= confirm_after {
            self.pending = None;
            return None;
        }
        self.pending = Some((deletions.clone(), since));
        // The same words each time: a lasting warning is said once.
        Some(format!(
            "{} of {alive} objects are not declared any more; they are deleted if that lasts for {} s",
            deletions.len(),
            confirm_after.as_secs()
        ))
    }
}
