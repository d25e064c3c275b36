//! `config convert`: a binarystore.xml becomes a depot.toml that init takes.

use std::fs;

use crate::harness::{Depot, Mode, guarded};

#[test]
fn a_converted_chain_makes_a_depot() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let at = |name: &str| depot.scratch().join(name);
        let (xml, toml) = (at("binarystore.xml"), at("new.toml"));
        let shard = |id: &str| {
            let dir = at(id);
            format!(
                "<provider id='{id}' type='state-aware'><fileStoreDir>{}</fileStoreDir><checkPeriod>1e3</checkPeriod></provider>",
                dir.display()
            )
        };
        let text = format!(
            "<config version='2'><chain><provider id='sharding' type='sharding'>\
             <sub-provider id='one' type='state-aware'/><sub-provider id='two' type='state-aware'/></provider></chain>\
             <provider id='sharding' type='sharding'><redundancy>2</redundancy></provider>{}{}</config>",
            shard("one"),
            shard("two")
        );
        fs::write(&xml, &text).unwrap();
        let ran = depot.cli(&["config", "convert", xml.to_str().unwrap()]);
        assert!(ran.err.contains("note: ") && ran.err.contains("Artifactory's own directory"), "{}", ran.err);
        fs::write(&toml, ran.ok()).unwrap();
        depot.cli(&["init", depot.dir_str(), "--from", toml.to_str().unwrap()]).ok();
        depot.cli(&["config", "check", depot.dir_str()]).ok();
        let shown = depot.cli(&["config", "show", depot.dir_str()]).ok();
        assert!(
            shown.lines().any(|line| line.starts_with("sharding.check-period") && line.contains("1s")),
            "{shown}"
        );
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.flush();
        for shard in ["one", "two"] {
            assert!(at(shard).join(".depotfs").exists(), "{shard}");
        }
        depot.umount();
        depot.check();
    });
}

#[test]
fn what_is_lost_is_told_and_counts() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let xml = depot.scratch().join("binarystore.xml");
        let convert = |text: &str| {
            fs::write(&xml, text).unwrap();
            depot.cli(&["config", "convert", xml.to_str().unwrap()])
        };
        let ran = convert(
            "<config version='1'><chain><provider id='h' type='hdfs'/></chain><provider id='h' type='hdfs'><a>\u{1b}</a></provider></config>"
                .replace('\u{1b}', "&#10;b")
                .as_str(),
        );
        assert_eq!(ran.code, Some(4), "{}", ran.err);
        assert!(
            ran.err.contains("not carried over: provider h (hdfs)") && ran.err.contains("problem: "),
            "{}",
            ran.err
        );
        assert!(ran.out.contains("# - provider h (hdfs)") && ran.out.contains("chain = []"), "{}", ran.out);
        for (text, part) in [("<config/>", "no <chain>"), ("<config", "not XML")] {
            let err = convert(text).fails(1);
            assert!(err.contains("binarystore.xml cannot be converted") && err.contains(part), "{err}");
        }
        fs::File::create(&xml).unwrap().set_len(2 << 20).unwrap();
        assert!(
            depot.cli(&["config", "convert", xml.to_str().unwrap()]).fails(1).contains("more than 1 MiB")
        );
        assert!(depot.cli(&["config", "convert", "/nowhere.xml"]).fails(1).contains("No such file"));
    });
}
