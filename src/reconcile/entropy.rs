//! Randomness, injected: the host's, or a seeded sequence in simulations, which replay exactly.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::{Builder, Uuid};

/// Gives random values.
#[derive(Clone, Debug, Default)]
pub enum Entropy {
    /// The operating system's.
    #[default]
    Host,
    /// One sequence, shared by all clones. The guard covers one step of it.
    Seeded(Arc<Mutex<StdRng>>),
}

impl Entropy {
    /// The sequence that belongs to a seed.
    pub fn seeded(seed: u64) -> Self {
        Entropy::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A number from 0 up to, not including, 1.
    pub fn fraction(&self) -> f64 {
        match self {
            Entropy::Host => rand::random(),
            Entropy::Seeded(sequence) => sequence.lock().unwrap_or_else(PoisonError::into_inner).random(),
        }
    }

    /// A random (version 4) uuid.
    pub fn uuid(&self) -> Uuid {
        match self {
            Entropy::Host => Uuid::new_v4(),
            Entropy::Seeded(sequence) => {
                let bytes = sequence.lock().unwrap_or_else(PoisonError::into_inner).random();
                Builder::from_random_bytes(bytes).into_uuid()
            }
        }
    }
}
