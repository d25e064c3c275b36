//! What was measured: numbers by quantity and peer, and their median and spread.

use std::collections::BTreeMap;

use crate::sites::Peer;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Time.
    Seconds,
    /// Memory or disk.
    Bytes,
    /// How often.
    Count,
}

impl Unit {
    /// A number with its unit, three digits long.
    pub fn show(self, value: f64) -> String {
        let digits = |value: f64| match value {
            v if v >= 99.95 || v == 0.0 => format!("{v:.0}"),
            v if v >= 9.995 => format!("{v:.1}"),
            v => format!("{v:.2}"),
        };
        match self {
            Unit::Seconds if value < 1e-3 => format!("{} us", digits(value * 1e6)),
            Unit::Seconds if value < 1.0 => format!("{} ms", digits(value * 1e3)),
            Unit::Seconds => format!("{} s", digits(value)),
            Unit::Bytes if value >= 1e6 => format!("{} MB", digits(value / 1e6)),
            Unit::Bytes => format!("{} B", digits(value)),
            Unit::Count => digits(value),
        }
    }
}

/// The numbers of one quantity for one peer, one for each round.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    values: Vec<f64>,
}

impl Sample {
    /// The numbers in the order of the rounds.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The middle one; the mean of the two middle ones when their number is even.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        match n {
            0 => f64::NAN,
            _ if n % 2 == 1 => sorted[n / 2],
            _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The smallest one: of counts to which others on the machine can only add.
    pub fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    /// Half the distance between the largest and the smallest, as part of the median.
    pub fn spread(&self) -> f64 {
        let largest = self.values.iter().copied().fold(f64::NAN, f64::max);
        (largest - self.least()) / 2.0 / self.median()
    }
}

/// A row that a peer could not do.
#[derive(Debug)]
pub struct Trouble {
    /// The row.
    pub row: &'static str,
    /// The peer.
    pub peer: Peer,
    /// Why.
    pub why: String,
}

/// Everything that a row measured.
#[derive(Debug, Default)]
pub struct Samples {
    samples: BTreeMap<(&'static str, Peer), Sample>,
    units: BTreeMap<&'static str, Unit>,
    order: Vec<&'static str>,
    troubles: Vec<Trouble>,
}

impl Samples {
    /// One more number.
    pub fn add(&mut self, quantity: &'static str, unit: Unit, peer: Peer, value: f64) {
        if self.units.insert(quantity, unit).is_none() {
            self.order.push(quantity);
        }
        self.samples.entry((quantity, peer)).or_default().values.push(value);
    }

    /// A peer cannot do this row.
    pub fn trouble(&mut self, row: &'static str, peer: Peer, why: String) {
        self.troubles.push(Trouble { row, peer, why });
    }

    /// What could not be measured.
    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    /// The numbers of one quantity for one peer.
    pub fn get(&self, quantity: &'static str, peer: Peer) -> Option<&Sample> {
        self.samples.get(&(quantity, peer))
    }

    /// All quantities in the order in which they came.
    pub fn quantities(&self) -> impl Iterator<Item = (&'static str, Unit)> {
        self.order.iter().map(|quantity| (*quantity, self.units[quantity]))
    }

    /// Takes over what another row measured.
    pub fn extend(&mut self, other: Samples) {
        self.troubles.extend(other.troubles);
        for quantity in other.order {
            if self.units.insert(quantity, other.units[quantity]).is_none() {
                self.order.push(quantity);
            }
        }
        for (key, sample) in other.samples {
            self.samples.entry(key).or_default().values.extend(sample.values);
        }
    }
}
