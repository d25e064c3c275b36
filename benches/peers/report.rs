//! Tables for people and lines for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::goals::{GOALS, Goal};
use crate::samples::{Samples, Trouble, Unit};
use crate::sites::{ALL, Peer};

/// All goals that could be judged.
pub fn goals(samples: &Samples) -> String {
    let mut text = String::from("| work | depotfs | compared | goal | met |\n|---|---|---|---|---|\n");
    for goal in GOALS {
        let Some(verdict) = goal.verdict(samples) else { continue };
        let (unit, ours) = own(goal, samples);
        let compared =
            if goal.is_ratio() { format!("{:.2}x", verdict.value) } else { unit.show(verdict.value) };
        let met = if verdict.met { "yes" } else { "**no**" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | {ours} | {compared} | {} | {met} |", goal.ours, verdict.wanted);
    }
    text
}

fn own(goal: &Goal, samples: &Samples) -> (Unit, String) {
    let unit = samples.quantities().find(|(of, _)| *of == goal.ours).map_or(Unit::Count, |(_, unit)| unit);
    let median = samples.get(goal.ours, Peer::Depotfs).map_or(f64::NAN, |sample| sample.median());
    (unit, unit.show(median))
}

/// What every peer took: medians, and half the range in percent.
pub fn table(samples: &Samples) -> String {
    let measured = |peer: &Peer| samples.quantities().any(|(of, _)| samples.get(of, *peer).is_some());
    let peers: Vec<Peer> = ALL.into_iter().chain([Peer::Core]).filter(measured).collect();
    let heads: Vec<String> = peers.iter().map(Peer::to_string).collect();
    let mut text = format!("| work | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(peers.len()));
    for (quantity, unit) in samples.quantities() {
        let cell = |peer: &Peer| match samples.get(quantity, *peer) {
            Some(sample) if sample.values().len() > 1 && sample.median() > 0.0 => {
                format!("{} ±{:.0}%", unit.show(sample.median()), sample.spread() * 100.0)
            }
            Some(sample) => unit.show(sample.median()),
            None => "-".into(),
        };
        let cells: Vec<String> = peers.iter().map(cell).collect();
        let _ = writeln!(text, "| {quantity} | {} |", cells.join(" | "));
    }
    text
}

/// What could not be measured, and why; nothing when all went well.
pub fn troubles(samples: &Samples) -> String {
    let line = |t: &Trouble| format!("- `{}` of {} failed: {}\n", t.row, t.peer, t.why);
    let lines: String = samples.troubles().iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// One line for each quantity and peer, and one for each goal.
pub fn json_lines(samples: &Samples) -> String {
    let mut lines: Vec<Value> = Vec::new();
    for (quantity, unit) in samples.quantities() {
        for peer in ALL.into_iter().chain([Peer::Core]) {
            let Some(sample) = samples.get(quantity, peer) else { continue };
            let unit = format!("{unit:?}").to_lowercase();
            let (median, spread) = (sample.median(), sample.spread());
            lines.push(json!({ "quantity": quantity, "peer": peer.name(), "unit": unit, "median": median,
                "spread": spread, "rounds": sample.values() }));
        }
    }
    for goal in GOALS {
        let Some(verdict) = goal.verdict(samples) else { continue };
        lines.push(json!({ "goal": goal.ours, "value": verdict.value, "wanted": verdict.wanted, "met": verdict.met }));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
