//! The rules of deny.toml that need no network: licences, banned crates, where crates come from.

use std::process::Command;

use serde_json::Value;

/// The public registry.
const INDEX: &str = concat!("registry+https://github.com/rust-lang/crates", ".io-index");

/// What is built for Linux, as cargo tells it.
fn metadata() -> Value {
    let args = ["metadata", "--offline", "--locked", "--format-version=1"];
    let target = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let ran = cargo.args(args).args(target).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn rules() -> toml::Table {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    text.parse().unwrap()
}

/// The packages in use.
fn packages(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used = |package: &&Value| nodes.iter().any(|node| node["id"] == package["id"]);
    let packages: Vec<&Value> = metadata["packages"].as_array().unwrap().iter().filter(used).collect();
    assert!(packages.len() > 20, "{} packages", packages.len());
    packages
}

/// Whether a licence expression can be met with `allowed`: OR, AND and parentheses of SPDX, and the old slash for OR.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.trim();
    for (word, all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        let parts = split(expression, word);
        if parts.len() > 1 {
            let mut met = parts.iter().map(|part| is_met(part, allowed));
            return if all { met.all(|met| met) } else { met.any(|met| met) };
        }
    }
    match expression.strip_prefix('(').and_then(|inside| inside.strip_suffix(')')) {
        Some(inside) => is_met(inside, allowed),
        None => allowed.contains(&expression),
    }
}

/// Splits at a word outside parentheses.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut from) = (Vec::new(), 0);
    for (at, _) in text.match_indices(word) {
        let before = &text[..at];
        if before.matches('(').count() == before.matches(')').count() {
            parts.push(&text[from..at]);
            from = at + word.len();
        }
    }
    parts.push(&text[from..]);
    parts
}

#[test]
fn licence_expressions_are_understood() {
    let met = |expression: &str| is_met(expression, &["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        "((MIT))",
    ] {
        assert!(met(good), "{good}");
    }
    for bad in ["GPL-3.0", "", "MIT AND GPL-3.0", "(GPL-3.0 OR MIT) AND MPL-2.0", "Apache-2.0"] {
        assert!(!met(bad), "{bad}");
    }
}

#[test]
fn dependencies_keep_the_rules_of_deny_toml() {
    let (metadata, rules) = (metadata(), rules());
    let allowed: Vec<&str> =
        rules["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    assert!(!banned.is_empty() && rules["sources"]["unknown-registry"].as_str() == Some("deny"));
    let mut offences = Vec::new();
    for package in packages(&metadata) {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let licence = package["license"].as_str().unwrap_or_default();
        if !is_met(licence, &allowed) {
            offences.push(format!("{name} {version} has the licence {licence:?}"));
        }
        if banned.contains(&name) {
            offences.push(format!("{name} {version} is banned"));
        }
        // This package itself has no source.
        let source = package["source"].as_str().unwrap_or_default();
        if source != INDEX && name != env!("CARGO_PKG_NAME") {
            offences.push(format!("{name} {version} comes from {source:?}"));
        }
    }
    let own =
        packages(&metadata).into_iter().find(|package| package["name"] == env!("CARGO_PKG_NAME")).unwrap();
    for dependency in own["dependencies"].as_array().unwrap() {
        if dependency["req"] == "*" {
            offences.push(format!("{} may have any version", dependency["name"]));
        }
    }
    assert!(offences.is_empty(), "against deny.toml:\n  {}", offences.join("\n  "));
}
