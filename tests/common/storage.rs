//! Scripted disk space for the API: what it tells, and what pulls come to.

use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde_json::{Value, json};
use vmlet::image::{Digest, Source};
use vmlet::object::{Kind, ObjectKey};
use vmlet::storage::{PruneOrder, Pruned, PullUpdate, RemovalError, Removed, Report, Storage};
use vmlet::store::RemoveDiskError;

/// Two base disks, one of them in use, and a pull that goes well.
pub(crate) struct Scripted {
    report: Mutex<Report>,
}

pub(crate) fn digest(digit: char) -> Digest {
    format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
}

impl Default for Scripted {
    fn default() -> Self {
        let report = json!({
            "now": "2026-01-01T00:00:00Z",
            "disks": [
                {"digest": digest('a'), "state": "ready", "path": "/state/images/a/disk.ext4",
                 "size": 512 << 20, "allocated": 85 << 20, "sources": ["debian:12"],
                 "usedBy": ["image/debian", "vm/web"], "config": {"entrypoint": [], "cmd": ["bash"]},
                 "kernels": [{"from": "the kernel of debian-kernel:12", "release": "6.1.0-56-cloud-amd64",
                  "commandLine": "loglevel=6", "usedBy": ["image/debian", "vm/web"]}]},
                {"digest": digest('b'), "state": "ready", "path": "/state/images/b/disk.ext4",
                 "size": 64 << 20, "allocated": 7 << 20, "sources": ["alpine:3"], "usedBy": [],
                 "unusedSince": "2025-12-31T23:56:00Z", "keptUntil": "2026-01-01T00:06:00Z"},
            ],
            "pulls": [],
            "blobs": [{"digest": digest('d'), "size": 30 << 20, "lastUsed": "2025-12-31T00:00:00Z",
                "partial": false}],
            "vmDisks": [{"vm": "vm/web", "running": true, "allocated": 300 << 20}],
            "staging": {"count": 0, "allocated": 0},
            "filesystem": {"free": 61_u64 << 30, "total": 252_u64 << 30},
            "retention": {"graceSeconds": 600, "diskLow": 10, "diskHigh": 15},
        });
        Scripted { report: Mutex::new(serde_json::from_value(report).unwrap()) }
    }
}

/// What a pull of a reference comes to, by its name.
fn updates(source: &str) -> Vec<Value> {
    let progress = |layers_done, bytes_done, rate| {
        let progress = json!({"layers": 2, "layersDone": layers_done, "bytes": 100 << 20,
            "bytesDone": bytes_done, "bytesPerSecond": rate});
        json!({"type": "pulling", "digest": digest('c'), "progress": progress})
    };
    let mut updates = vec![json!({"type": "resolving"})];
    updates.extend(match source {
        "missing:1" => {
            vec![json!({"type": "failed", "reason": "NotFound", "message": "missing:1: not found"})]
        }
        "alpine:3" => vec![json!({"type": "done", "digest": digest('b'), "allocated": 7 << 20,
            "alreadyThere": true})],
        _ => vec![
            json!({"type": "queued", "digest": digest('c')}),
            progress(0, 10 << 20, None),
            progress(0, 40 << 20, Some(34 << 20)),
            progress(1, 90 << 20, Some(34 << 20)),
            json!({"type": "done", "digest": digest('c'), "allocated": 90 << 20, "alreadyThere": false,
                "keptUntil": "2020-01-01T00:00:00Z"}),
        ],
    });
    updates
}

#[async_trait]
impl Storage for Scripted {
    async fn report(&self) -> Report {
        self.report.lock().unwrap().clone()
    }

    fn pull(&self, source: Source) -> BoxStream<'static, PullUpdate> {
        let updates = updates(&source.to_string()).into_iter();
        stream::iter(updates.map(|update| serde_json::from_value(update).unwrap())).boxed()
    }

    async fn remove(&self, digest: Digest) -> Result<Removed, RemovalError> {
        let mut report = self.report.lock().unwrap();
        let disk = report.disks.iter().find(|disk| disk.digest == digest).ok_or(RemoveDiskError::Unknown)?;
        if !disk.used_by.is_empty() {
            let key = |name: &String| {
                let (kind, name) = name.split_once('/').unwrap();
                ObjectKey::new(kind.parse::<Kind>().unwrap(), "default", name)
            };
            return Err(RemoveDiskError::InUse { by: disk.used_by.iter().map(key).collect() }.into());
        }
        let removed = Removed { digest: digest.clone(), allocated: disk.allocated };
        report.disks.retain(|disk| disk.digest != digest);
        Ok(removed)
    }

    async fn prune(&self, order: PruneOrder) -> Result<Pruned, RemovalError> {
        let mut report = self.report.lock().unwrap();
        let unused = report.disks.iter().filter(|disk| disk.used_by.is_empty());
        let disks: Vec<Removed> =
            unused.map(|disk| Removed { digest: disk.digest.clone(), allocated: disk.allocated }).collect();
        let blobs = if order.all { report.blobs.iter().map(|blob| blob.size).sum() } else { 0 };
        if !order.dry_run {
            report.disks.retain(|disk| !disk.used_by.is_empty());
            report.blobs.retain(|_| !order.all);
        }
        let allocated = disks.iter().map(|disk| disk.allocated).sum::<u64>() + blobs;
        Ok(Pruned { allocated, disks, blobs })
    }
}
