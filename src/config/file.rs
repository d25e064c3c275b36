//! `depot.toml` as text: reading it into checked values, and writing the one that `init` makes.
//!
//! The tables of a list, `[[sharding.shard]]`, are told apart by their numbers: `sharding.shard[0].dir`.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::keys::{self, Key, Kind, brief};
use super::nearest::suggestion;
use super::{Chosen, Problem, Values};

/// Reads the text of a depot.toml: the values that are good, and what is wrong with the others. What is not TOML at all is
/// the one problem of the error.
pub fn read(keys: &'static [Key], text: &str) -> Result<(Values, Vec<Problem>), Problem> {
    let table: Table = text.parse().map_err(|error| Problem::new("", syntax(text, &error)))?;
    let mut reader = Reader { keys, values: Values::new(), problems: Vec::new() };
    reader.collect("", &table);
    Ok((reader.values, reader.problems))
}

/// What is wrong and where. The line itself is not shown, as a secret may stand in it.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column} is not TOML: {}", error.message().trim())
}

/// The keys without which nothing can be done and that are not there, and the tables that are left out between others.
pub fn missing(keys: &'static [Key], chosen: &Chosen, values: &Values) -> Vec<Problem> {
    let mut problems = Vec::new();
    for key in keys.iter().filter(|key| chosen.uses(key.section())) {
        let names = match key.table().strip_suffix("[]") {
            Some(list) => {
                values.tables(list).iter().map(|i| key.name.replace("[]", &format!("[{i}]"))).collect()
            }
            None => vec![key.name.to_owned()],
        };
        let missing = names.into_iter().filter(|name| key.default.is_none() && !values.contains_key(name));
        problems.extend(missing.map(|name| {
            let text = format!("\"{name}\" is missing: {}", key.doc);
            Problem::new(name, text)
        }));
    }
    problems.extend(lists(keys).filter_map(|list| {
        let gap = (0..).zip(values.tables(list)).find(|(i, there)| i != there)?.0;
        let text = format!("\"{list}[{gap}]\" is missing: number the tables from 0 on and leave none out");
        Some(Problem::new(format!("{list}[{gap}]"), text))
    }));
    problems
}

/// The names of the lists of tables, without the brackets.
fn lists(keys: &'static [Key]) -> impl Iterator<Item = &'static str> {
    keys.chunk_by(|a, b| a.table() == b.table()).filter_map(|rows| rows[0].table().strip_suffix("[]"))
}

/// Checks one `key=value` as `init --set` takes it.
pub fn assignment(keys: &'static [Key], text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("\"{}\" is not of the form key=value", brief(text)));
    };
    let name = name.trim();
    let key = keys::find(keys, name)?;
    if key.kind == Kind::Id {
        return Err(format!("\"{name}\" cannot be chosen: init makes it"));
    }
    let value = key.kind.normal(value.trim()).map_err(|why| format!("{name}: {why}"))?;
    Ok((name.to_owned(), value))
}

/// The text of a depot.toml with these values, the remaining keys as comments with their defaults.
pub fn render(keys: &'static [Key], values: &Values) -> String {
    let chosen = Chosen::of(values).unwrap_or_default();
    let default = |key: &Key| chosen.default(key.name).or(key.default);
    let mut text =
        String::from("# Configuration of a depotfs depot. Relative paths start at this directory.\n");
    for rows in keys.chunk_by(|a, b| a.table() == b.table()) {
        let table = rows[0].table();
        if let Some(list) = table.strip_suffix("[]") {
            render_list(&mut text, list, rows, values);
            continue;
        }
        if !table.is_empty() {
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, "\n[{table}]\n");
        }
        for key in rows {
            let _ = write!(text, "\n# {}\n", key.doc);
            render_key(&mut text, key, default(key), values.get(key.name));
        }
    }
    text
}

/// The tables of a list with their values; a commented one where there are none.
fn render_list(text: &mut String, list: &str, rows: &[Key], values: &Values) {
    let tables = values.tables(list);
    if tables.is_empty() {
        let _ = write!(text, "\n# [[{list}]]\n");
    }
    for key in rows.iter().filter(|_| tables.is_empty()) {
        let _ = writeln!(text, "# {}", key.doc);
        render_key(text, key, key.default, None);
    }
    for table in tables {
        let _ = write!(text, "\n[[{list}]]\n");
        for key in rows {
            let _ = writeln!(text, "# {}", key.doc);
            render_key(text, key, key.default, values.get(&format!("{list}[{table}].{}", key.own_name())));
        }
    }
}

fn render_key(text: &mut String, key: &Key, default: Option<&str>, value: Option<&str>) {
    let name = key.own_name();
    let _ = match value {
        Some(value) => writeln!(text, "{name} = {}", toml_of(key.kind, value)),
        None => writeln!(text, "# {name} = {}", default.map_or("...".into(), |d| toml_of(key.kind, d))),
    };
}

fn toml_of(kind: Kind, value: &str) -> String {
    match kind {
        Kind::Count { .. } | Kind::Flag => value.into(),
        Kind::Chain => Value::Array(super::chain::names(value).map(Value::from).collect()).to_string(),
        _ => Value::from(value).to_string(),
    }
}

/// Walks the tables of the file, turning nested names into dotted ones.
struct Reader {
    keys: &'static [Key],
    values: Values,
    problems: Vec<Problem>,
}

/// What a name in the file leads to.
enum Place {
    /// A value.
    Key(&'static Key),
    /// A table with keys.
    Section,
    /// Several tables with keys.
    List,
}

impl Reader {
    fn collect(&mut self, prefix: &str, table: &Table) {
        for (own, value) in table {
            let name = if prefix.is_empty() { own.clone() } else { format!("{prefix}.{own}") };
            if own.contains(['.', '[', ']']) {
                let text = format!(
                    "unknown key \"{}\": what stands in quotes is one name, without dots",
                    brief(&name)
                );
                self.problem(&name, text);
                continue;
            }
            match (self.place(&name), value) {
                (Some(Place::Key(key)), value) => self.take(key, &name, value),
                (Some(Place::Section), Value::Table(inner)) => self.collect(&name, inner),
                (Some(Place::Section), _) => {
                    self.problem(
                        &name,
                        format!("\"{name}\" is a section: write [{name}] and its keys below it"),
                    );
                }
                (Some(Place::List), Value::Array(tables)) => self.collect_list(&name, tables),
                (Some(Place::List), _) => self.no_list(&name),
                (None, Value::Table(_)) => self.unknown_section(&name),
                (None, _) => {
                    let text = keys::find(self.keys, &name).err().unwrap_or_default();
                    self.problem(&name, text);
                }
            }
        }
    }

    fn collect_list(&mut self, list: &str, tables: &[Value]) {
        for (i, table) in tables.iter().enumerate() {
            let name = format!("{list}[{i}]");
            match table {
                Value::Table(table) if table.is_empty() => {
                    self.problem(
                        &name,
                        format!("\"{name}\" is a table without keys: give it some, or take it out"),
                    );
                }
                Value::Table(table) => self.collect(&name, table),
                _ => return self.no_list(list),
            }
        }
    }

    fn take(&mut self, key: &'static Key, name: &str, value: &Value) {
        let text = text_of(key.kind, value).ok_or_else(|| {
            // No value that may be a secret is shown.
            let shown = match key.kind {
                Kind::Secret => format!("this {}", value.type_str()),
                _ => brief(&value.to_string()),
            };
            format!("{shown} is not {}", key.kind.wanted())
        });
        match text.and_then(|text| key.kind.normal(&text)) {
            Ok(text) => self.values.insert(name, text),
            Err(why) => self.problem(name, format!("{name}: {why}")),
        }
    }

    fn place(&self, name: &str) -> Option<Place> {
        let name = keys::row_name(name);
        let below = |key: &Key| key.name.strip_prefix(&*name).and_then(|rest| rest.chars().next());
        let found = |key: &'static Key| match below(key) {
            None if key.name == name => Some(Place::Key(key)),
            Some('.') => Some(Place::Section),
            Some('[') => Some(Place::List),
            _ => None,
        };
        self.keys.iter().find_map(found)
    }

    fn no_list(&mut self, name: &str) {
        self.problem(
            name,
            format!("\"{name}\" is a list of tables: write [[{name}]] above the keys of each"),
        );
    }

    /// A section that no key lives in, with the nearest one.
    fn unknown_section(&mut self, name: &str) {
        let sections =
            self.keys.iter().map(|key| key.table().trim_end_matches("[]")).filter(|t| !t.is_empty());
        let text = format!("unknown section [{}]{}", brief(name), suggestion(name, sections));
        self.problem(name, text);
    }

    fn problem(&mut self, key: &str, text: String) {
        self.problems.push(Problem::new(key, text));
    }
}

/// The text of a value of a fitting TOML type: modes may also be numbers (`0o440`), and so on.
fn text_of(kind: Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::String(text)) => Some(text.clone()),
        (Kind::ReadOnlyMode, Value::Integer(mode)) => Some(format!("{:04o}", u32::try_from(*mode).ok()?)),
        (Kind::Size | Kind::Count { .. } | Kind::Duration, Value::Integer(number)) => {
            Some(number.to_string())
        }
        // As some tools write sizes, 5e+10.
        (Kind::Size, Value::Float(number)) if number.is_finite() => Some(format!("{number}")),
        (Kind::Flag, Value::Boolean(flag)) => Some(flag.to_string()),
        (Kind::Chain, Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().filter(|name| !name.contains(',')));
            Some(names.collect::<Option<Vec<_>>>()?.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
