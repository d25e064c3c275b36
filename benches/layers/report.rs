//! Tables for people and lines for programs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::goals::GOALS;
use crate::results::{COSTS, Results};
use crate::samples::{Trouble, Unit};
use crate::sites::{ALL, Peer};

/// All tables.
pub fn tables(results: &Results) -> String {
    format!("{}\n{}{}", goals(results), table(results), troubles(results))
}

/// All goals that could be judged.
fn goals(results: &Results) -> String {
    let figures = &results.figures;
    let mut text = String::from("| work | depotfs | compared | goal | met |\n|---|---|---|---|---|\n");
    for goal in GOALS {
        let Some(verdict) = goal.verdict(figures) else { continue };
        let unit =
            figures.quantities().find(|(of, _)| *of == goal.ours).map_or(Unit::Count, |(_, unit)| unit);
        let ours = figures.get(goal.ours, Peer::Depotfs).map_or(f64::NAN, |sample| sample.median());
        let met = if verdict.met { "yes" } else { "**no**" };
        let (ours, shown, wanted) = (unit.show(ours), verdict.shown, verdict.wanted);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | {ours} | {shown} | {wanted} | {met} |", goal.ours);
    }
    text
}

/// What every peer took and what that cost: medians, for times also half the range in percent.
fn table(results: &Results) -> String {
    let heads = COSTS.map(|(name, _)| name).join(" | ");
    let mut text = format!("| work | by | took | {heads} |\n|---|---|---|{}\n", "---|".repeat(COSTS.len()));
    for (quantity, unit) in results.figures.quantities() {
        for peer in ALL {
            let Some(sample) = results.figures.get(quantity, peer) else { continue };
            let took = match sample.values().len() > 1 && sample.median() > 0.0 {
                true => format!("{} ±{:.0}%", unit.show(sample.median()), sample.spread() * 100.0),
                false => unit.show(sample.median()),
            };
            let cost = |i: usize| match results.costs[i].get(quantity, peer) {
                Some(cost) => COSTS[i].1.show(cost.median()),
                None => "-".into(),
            };
            let costs: Vec<String> = (0..COSTS.len()).map(cost).collect();
            let _ = writeln!(text, "| {quantity} | {peer} | {took} | {} |", costs.join(" | "));
        }
    }
    text
}

/// What could not be measured, and why; nothing when all went well.
fn troubles(results: &Results) -> String {
    let line = |t: &Trouble| format!("- `{}` of {} failed: {}\n", t.row, t.peer, t.why);
    let lines: String = results.figures.troubles().iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// One line for each quantity and peer, and one for each goal.
pub fn json_lines(results: &Results) -> String {
    let mut lines: Vec<Value> = Vec::new();
    for (quantity, unit) in results.figures.quantities() {
        for peer in ALL {
            let Some(sample) = results.figures.get(quantity, peer) else { continue };
            let costs: Map<String, Value> = COSTS
                .iter()
                .zip(&results.costs)
                .filter_map(|((name, _), cost)| {
                    Some(((*name).into(), json!(cost.get(quantity, peer)?.values())))
                })
                .collect();
            lines.push(json!({ "quantity": quantity, "peer": peer.name(), "unit": format!("{unit:?}").to_lowercase(),
                "median": sample.median(), "spread": sample.spread(), "rounds": sample.values(), "costs": costs }));
        }
    }
    for goal in GOALS {
        let Some(verdict) = goal.verdict(&results.figures) else { continue };
        lines.push(json!({ "goal": goal.ours, "value": verdict.value, "wanted": verdict.wanted, "met": verdict.met }));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
