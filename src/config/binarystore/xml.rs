//! The chain of a binarystore.xml with the parameters that hold for each provider.
//!
//! A chain is a template's or its own, with the providers nested from the outermost in. Blocks beside the chain override
//! parameters by the provider's id. The version attribute may be anything.

use roxmltree::{Document, Node, ParsingOptions};

use super::table::{self, Template};
use super::{Told, named};
use crate::config::keys::brief;
use crate::config::nearest::suggestion;

/// More elements and texts than any chain has.
const NODES_MAX: u32 = 20_000;

/// A provider of the chain.
#[derive(Debug)]
pub(super) struct Step {
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Later ones of the same name hold.
    parameters: Vec<(String, String)>,
    /// What a sharding spreads blobs over.
    pub shards: Vec<Step>,
}

/// A block of parameters.
struct Block {
    id: String,
    kind: String,
    parameters: Vec<(String, String)>,
}

impl Step {
    /// The value of a parameter; an empty one is none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.parameters.iter().rev();
        let found = all.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// Names of the parameters that have a value, each once.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &self.parameters {
            if self.get(name).is_some() && !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name);
            }
        }
        names
    }
}

/// The providers of the chain, outermost first, and what of the file is not in them. An error says why there is no chain.
pub(super) fn read(text: &str, told: &mut Told) -> Result<Vec<Step>, String> {
    let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text, options).map_err(|error| format!("it is not XML: {error}"))?;
    let config = document.root_element();
    if config.tag_name().name() != "config" {
        return Err(format!("its outermost element is <{}>, not <config>", brief(config.tag_name().name())));
    }
    let mut chains = elements(config).filter(|node| node.tag_name().name() == "chain");
    let chain = chains.next().ok_or("it has no <chain>")?;
    if chains.next().is_some() {
        told.lose("the second <chain>: only the first is a chain".into());
    }
    let blocks: Vec<Block> = elements(config).filter(is_provider).map(|node| block(node, told)).collect();
    let mut steps = match (elements(chain).find(is_provider), chain.attribute("template")) {
        (Some(outermost), template) => {
            if template.is_some() {
                told.note("the chain has providers of its own, so its template is nothing but a name".into());
            }
            if elements(chain).filter(is_provider).count() > 1 {
                told.lose("all but the first outermost provider: providers stand inside each other".into());
            }
            explicit(outermost, told)
        }
        (None, Some(name)) => of_template(find_template(name)?, &blocks, told),
        (None, None) => return Err("its <chain> names neither a template nor providers".into()),
    };
    override_by_id(&mut steps, blocks, told);
    Ok(steps)
}

fn find_template(name: &str) -> Result<&'static Template, String> {
    table::TEMPLATES.iter().find(|template| template.name == name).ok_or_else(|| {
        let names = table::TEMPLATES.iter().map(|template| template.name);
        format!("the template \"{}\" is not known{}", brief(name), suggestion(name, names))
    })
}

/// The chain of a template. A block for a shard whose id is another than the template's is taken for the next shard.
fn of_template(template: &Template, blocks: &[Block], told: &mut Told) -> Vec<Step> {
    let step = |id: &str, kind: &str| {
        let own = template.parameters.iter().filter(|(provider, _, _)| *provider == id);
        let parameters = own.map(|(_, name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Step { id: id.to_owned(), kind: kind.to_owned(), parameters, shards: Vec::new() }
    };
    let mut steps: Vec<Step> = template.chain.iter().map(|kind| step(kind, kind)).collect();
    let Some(last) = steps.last_mut() else { return steps };
    last.shards = template.shards.iter().map(|id| step(id, "state-aware")).collect();
    let own: Vec<&Block> = blocks.iter().filter(|block| block.kind == "state-aware").collect();
    let known = own.iter().any(|block| template.shards.contains(&block.id.as_str()));
    if !known && !own.is_empty() && own.len() == last.shards.len() {
        for (shard, block) in last.shards.iter_mut().zip(own) {
            told.note(format!(
                "provider {} is taken for shard {} of the template",
                brief(&block.id),
                shard.id
            ));
            shard.id.clone_from(&block.id);
        }
    }
    steps
}

/// The chain that begins with this element.
fn explicit(outermost: Node<'_, '_>, told: &mut Told) -> Vec<Step> {
    let (mut steps, mut next) = (Vec::new(), Some(outermost));
    while let Some(node) = next.take() {
        let Block { id, kind, parameters } = block(node, told);
        let mut step = Step { id, kind, parameters, shards: Vec::new() };
        let mut below: Vec<Node> = elements(node).filter(is_provider).collect();
        below.retain(|node| {
            let dynamic = node.tag_name().name() == "dynamic-provider";
            if dynamic {
                let name = brief(node.attribute("type").unwrap_or_default());
                told.lose(format!(
                    "the dynamic-provider {name}: a depot is of one host and looks for no others"
                ));
            }
            !dynamic
        });
        if step.kind == "sharding" {
            step.shards = below.into_iter().map(|node| shard(node, told)).collect();
        } else {
            let mut below = below.into_iter();
            next = below.next();
            for other in below {
                let Block { id, kind, .. } = block(other, &mut Told::default());
                told.lose(format!(
                    "{}: only the first of several providers below one is in the chain",
                    named(&id, &kind)
                ));
            }
        }
        steps.push(step);
    }
    steps
}

fn shard(node: Node<'_, '_>, told: &mut Told) -> Step {
    let Block { id, kind, parameters } = block(node, told);
    for below in elements(node).filter(is_provider) {
        let Block { id: own, kind, .. } = block(below, &mut Told::default());
        told.lose(format!("{} below shard {}: a shard is a directory", named(&own, &kind), brief(&id)));
    }
    Step { id, kind, parameters, shards: Vec::new() }
}

/// Adds the parameters of the blocks to those of the providers with their ids.
fn override_by_id(steps: &mut [Step], blocks: Vec<Block>, told: &mut Told) {
    for block in blocks {
        let mut all = steps.iter_mut().flat_map(|step| {
            let Step { id, kind, parameters, shards } = step;
            let shards = shards.iter_mut().map(|shard| (&shard.id, &shard.kind, &mut shard.parameters));
            std::iter::once((&*id, &*kind, parameters)).chain(shards)
        });
        let Some((_, kind, parameters)) = all.find(|(id, _, _)| **id == block.id) else {
            told.note(format!("{} is not in the chain, so it does nothing", named(&block.id, &block.kind)));
            continue;
        };
        if !block.kind.is_empty() && *kind != block.kind {
            let text =
                format!("the type of {}: in the chain it is {}", named(&block.id, &block.kind), brief(kind));
            told.lose(text);
        }
        parameters.extend(block.parameters);
    }
}

/// What an element of a provider says itself.
fn block(node: Node<'_, '_>, told: &mut Told) -> Block {
    let kind = node.attribute("type").unwrap_or_default().trim();
    let id = node.attribute("id").unwrap_or(kind).trim();
    let kind = if kind.is_empty() { id } else { kind };
    let mut parameters = Vec::new();
    for below in elements(node).filter(|node| !is_provider(node)) {
        let name = below.tag_name().name();
        match name {
            "property" => {
                let property = brief(below.attribute("name").unwrap_or_default());
                told.lose(format!("property {property} of {}: it has no counterpart", named(id, kind)));
            }
            _ if elements(below).next().is_some() => {
                told.lose(format!(
                    "<{}> of {}: it is no parameter with a value",
                    brief(name),
                    named(id, kind)
                ));
            }
            _ => {
                let texts = below.children().filter(Node::is_text).filter_map(|text| text.text());
                parameters.push((name.to_owned(), texts.collect::<String>().trim().to_owned()));
            }
        }
    }
    Block { id: id.to_owned(), kind: kind.to_owned(), parameters }
}

fn elements<'a, 'input>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

fn is_provider(node: &Node<'_, '_>) -> bool {
    matches!(node.tag_name().name(), "provider" | "sub-provider" | "dynamic-provider")
}
