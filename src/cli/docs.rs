//! docs/configuration.md, made from the tables of keys and options.
//!
//! The test fails when the page is not what the tables say; with `DEPOTFS_WRITE_DOCS=1` it writes the page instead.

use std::path::Path;

use crate::config::keys::{DEPOT, Key, Kind, REPOSITORY};
use crate::fuse::options;

const HEAD: &str = "\
# Configuration

This page is made from the tables in the source; `DEPOTFS_WRITE_DOCS=1 cargo test --lib docs` writes it anew.

## depot.toml

`depotfs init DEPOT --set key=value` writes these keys, and an editor changes them; they hold from the next mount on.
`depotfs config check DEPOT` tells beforehand whether what the editor wrote is right (below).
Relative paths start at the depot.
Unknown keys are refused by name, and so are keys of a provider that the chain does not have.
The file is UTF-8 and at most 1 MiB.

```toml
template = \"file-system\"

[file-system]
dir = \"/raid/blobs\"
blob-mode = \"0440\"
```

";

const VALUES: &str = "
### Values

A value is a text in quotes; numbers and `true` or `false` may also stand without.

| value | examples | means |
|---|---|---|
| a size | `\"5GB\"`, `\"5GiB\"`, `5000000000`, `5e+10` | bytes: KB, MB, GB, TB and PB are powers of 1000, KiB, MiB, GiB, TiB and PiB of 1024; `\"1.5TB\"` is one, what is no whole number of bytes is not |
| a duration | `\"15s\"`, `\"500ms\"`, `\"2min\"`, `\"10h\"`, `\"1d\"`, `\"1h30min\"` | whole numbers with the units d, h, min, s and ms, the larger unit first; a number without a unit is refused |
| a number | `8`, `\"8\"` | a whole number within the bounds of its key |
| true or false | `true`, `\"true\"` | |
| a text | `\"eu-west\"`, `\"${ZONE}\"` | any text, with environment variables |
| a text that is kept secret | `\"${PASSWORD}\"` | the same; it is never shown, and depot.toml is for its owner only where init writes one into it |

`${NAME}` in a text or a secret is replaced by the environment variable of that name when the configuration is loaded; depot.toml keeps `${NAME}`.
Whoever starts the daemon sets the variable, for systemd in the environment file of the unit; one that is not set is an error that names it and the key.
`$${` stands for the characters `${`.

A key such as `section.list[].key` belongs to one of several tables, each of which begins with `[[section.list]]`.
Messages and `--set` number the tables from 0 on: `section.list[0].key`.

### The chain

`template` names a chain of providers, `chain` says it provider by provider, outermost first; both at once are refused.
The last provider keeps the blobs, each other one is a layer over the next, and none stands in it twice.

```toml
chain = [\"full-db\"]
```

`depotfs init DEPOT --set chain=full-db` writes that; several providers have commas between them.
`depotfs rechain` gives a depot another chain; one that is changed in depot.toml and does not reach the blobs is refused by the next mount.
";

const COMMANDS: &str = "
### Showing and checking

```sh
depotfs config show /srv/depot           # every key: its value, and where that comes from
depotfs config show /srv/depot --json
depotfs config check /srv/depot          # everything that is wrong, before the next mount finds the first of it
depotfs config check /srv/depot --json
```

Both work on a mounted and on an unmounted depot and change nothing.

`show` tells what a mount that is started here and now would find.
The origin of a value is `depot.toml`, `default`, `template` (of the chain) or `environment NAME`; a variable that is not set in this environment is told as such, and its value is the text of depot.toml.
Keys of providers that the chain does not have are left out, secrets are shown as `***`.

`check` looks at depot.toml and at the directories that it names: whether they are there, and whether those of the providers carry this depot's id.
Whose index it is, the mount finds out.
The exit code is 0 when nothing is wrong, 4 when problems were found, and 1 when depot.toml cannot be read.

### From a binarystore.xml

```sh
depotfs config convert binarystore.xml > new.toml
depotfs init /srv/depot --from new.toml        # a depot with that chain
depotfs rechain /srv/depot --to new.toml       # or that chain for a depot that is there
```

`convert` writes a depot.toml without an id: the chain of Artifactory's template or of its nested providers, with the parameters that blocks of the same id override.
What has no counterpart is told on standard error and as comments at the top of the output, with what to do about it; so is what `config check` would tell of the result.
The exit code is 0 when everything was carried over, 4 when something was not, and 1 when there is no chain in the file.
A value that Artifactory takes where none is given is written out where the default here is another.
Directories are carried over where they are absolute; Artifactory's own data directory is not known here.
Secrets are carried over as they are, with a comment that suggests a variable of the environment: keep the output to yourself.
The file is at most 1 MiB and has no document type definition.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(&keys(DEPOT));
    page.push_str(VALUES);
    page.push_str(COMMANDS);
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
        let default = match (key.default, key.kind) {
            (Some(default), Kind::Chain) => format!("`[\"{default}\"]`"),
            (Some(default), _) => format!("`\"{default}\"`"),
            (None, Kind::Id) => "made by init".into(),
            (None, _) => "must be given".into(),
        };
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
