//! What was measured, and what it cost beside the time.

use crate::samples::{Samples, Unit};
use crate::sites::Peer;

/// What work costs, in the order of the columns.
pub const COSTS: [(&str, Unit); 5] = [
    ("processor of the client", Unit::Seconds),
    ("processor of the server", Unit::Seconds),
    ("requests", Unit::Count),
    ("from the server", Unit::Bytes),
    ("to the server", Unit::Bytes),
];

/// One number of each, where it could be told.
pub type Costs = [Option<f64>; COSTS.len()];

/// Everything that the rows measured.
#[derive(Debug, Default)]
pub struct Results {
    /// Times and numbers.
    pub figures: Samples,
    /// What they cost, each under the name of its figure.
    pub costs: [Samples; COSTS.len()],
}

impl Results {
    /// One more number, and what it cost.
    pub fn add(&mut self, quantity: &'static str, unit: Unit, peer: Peer, value: f64, costs: Costs) {
        self.figures.add(quantity, unit, peer, value);
        for (i, cost) in costs.into_iter().enumerate() {
            if let Some(cost) = cost {
                self.costs[i].add(quantity, COSTS[i].1, peer, cost);
            }
        }
    }
}
