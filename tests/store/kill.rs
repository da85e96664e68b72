//! SIGKILL of a real writer at random instants.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use super::support::*;
use super::writer::{Acknowledged, WRITERS, arm};

/// Kills, one after the other, of writers on one store.
const KILLS: usize = 12;

#[test]
fn what_was_acknowledged_survives_kills() {
    let dir = TempDir::new().unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let mut acknowledged = Acknowledged::default();
    for kill in 0..KILLS {
        let before = acknowledged.count;
        // The number of lines stands for a time that fits a slow machine as well as a fast one.
        let lifetime = random.random_range(1..300);
        let mut command = Command::new(std::env::current_exe().unwrap());
        arm(&mut command, dir.path(), u32::MAX >> 1);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            acknowledged.note(&line.unwrap());
            if acknowledged.count == before + lifetime {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.count >= before + lifetime, "kill {kill}: the writer ended by itself");
        acknowledged.check(&open(dir.path()).unwrap());
    }
    assert_eq!(acknowledged.vms(), WRITERS);
    println!("{} acknowledgements survived {KILLS} kills", acknowledged.count);
}
