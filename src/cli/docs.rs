//! docs/configuration.md, made from the tables of keys and options.
//!
//! The test fails when the page is not what the tables say; with `DEPOTFS_WRITE_DOCS=1` it writes the page instead.

use std::path::Path;

use crate::config::keys::{DEPOT, Key, REPOSITORY};
use crate::fuse::options;

const HEAD: &str = "\
# Configuration

This page is made from the tables in the source; `DEPOTFS_WRITE_DOCS=1 cargo test --lib docs` writes it anew.

## depot.toml

`depotfs init DEPOT --set key=value` writes these keys, and an editor changes them; they hold from the next mount on.
Relative paths start at the depot.
Unknown keys are refused by name.

```toml
template = \"file-system\"

[file-system]
dir = \"/raid/blobs\"
blob-mode = \"0440\"
```

";

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(&keys(DEPOT));
    page.push_str(
        "\n## Settings of a repository\n\nKept in the index: they move with the repository when it is renamed.\n\
         `depotfs repo set DEPOT REPO key=value` changes them, `key=` goes back to the default.\n\n",
    );
    page.push_str(&keys(REPOSITORY));
    page.push_str(
        "\n## Mount options\n\nFor `depotfs mount -o`, mount(8) and /etc/fstab.\nUnknown options are refused by name.\n\n\
         | option | meaning |\n|---|---|\n",
    );
    for (name, meaning) in options::table() {
        let shown = if name.ends_with('=') { format!("{name}...") } else { name.to_owned() };
        page.push_str(&format!("| `{shown}` | {} |\n", cell(&meaning)));
    }
    page
}

fn keys(table: &[Key]) -> String {
    let mut text = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in table {
        let default = key.default.map_or("made by init".into(), |default| format!("`\"{default}\"`"));
        text.push_str(&format!(
            "| `{}` | {} | {default} | {} |\n",
            key.name,
            cell(&key.kind.wanted()),
            cell(key.doc)
        ));
    }
    text
}

/// Text that cannot end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_page_of_the_configuration_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("DEPOTFS_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/configuration.md is old: DEPOTFS_WRITE_DOCS=1 cargo test --lib docs");
}
