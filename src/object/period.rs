//! Lengths of time as people write them: `30s`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// The longest one: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A length of time, at most a week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(Duration);

impl Period {
    /// That many seconds; a week at most.
    pub const fn seconds(seconds: u32) -> Self {
        let longest = LONGEST.as_secs() as u32;
        Period(Duration::from_secs(if seconds < longest { seconds } else { longest } as u64))
    }

    /// As a duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is not a length of time; write for example 30s or 1h30m");
        let signed: SignedDuration = text.parse().map_err(|_| refuse())?;
        let period = Duration::try_from(signed).map_err(|_| refuse())?;
        if period > LONGEST {
            return Err(format!("{text:?} is more than a week"));
        }
        Ok(Period(period))
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> String {
        period.to_string()
    }
}

/// `1h 30m`
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX);
        write!(f, "{signed:#}")
    }
}
