//! The scripted file system: base disks take room, and so does what a script says.

use std::path::Path;
use std::sync::Arc;

use super::images::SIZE;
use super::{State, World};
use crate::image::Digest;
use crate::reconcile::{Room, Space};
use crate::store::DiskState;

/// The file system as one daemon sees it.
pub(in crate::testing) struct ScriptedRoom(pub(in crate::testing) Arc<World>);

impl State {
    pub(in crate::testing) fn space(&self) -> Space {
        let (total, others) = self.room;
        let disks = SIZE.saturating_mul(self.disks.len() as u64);
        let taken = others.saturating_add(disks).saturating_add(self.layers);
        Space { free: total.saturating_sub(taken), total }
    }

    /// A disk that nothing refers to is kept for its grace, unless room is wanted.
    pub(super) fn audit_removal(&mut self, digest: &Digest) {
        let record = self.durable().and_then(|durable| durable.disk(digest));
        let Some(record) = record.filter(|record| record.state == DiskState::Removing) else { return };
        let (Some(unused), Some(retention)) = (record.unused, self.retention) else { return };
        if retention.until(unused.since) <= self.wall() {
            return;
        }
        if self.layers > 0 {
            self.violation(format!("{digest} is removed in its grace, and layers are kept"));
        }
        if self.room_wanted {
            return;
        }
        if self.starved == 0 {
            self.violation(format!("{digest} is removed in its grace, and nobody needs the room"));
        }
        self.starved = self.starved.saturating_sub(1);
    }
}

impl Room for ScriptedRoom {
    fn space(&self) -> Option<Space> {
        let mut state = self.0.lock();
        let space = state.space();
        state.room_wanted = state.retention.is_some_and(|retention| space.is_below(retention.high));
        Some(space)
    }

    fn taken(&self, _: &Path) -> u64 {
        SIZE
    }

    fn blobs(&self) -> u64 {
        self.0.lock().layers
    }

    fn staging(&self) -> (usize, u64) {
        let staged = self.0.lock().staged.len();
        (staged, SIZE * staged as u64)
    }
}
