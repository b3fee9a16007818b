use super::*;

fn original() -> Original {
    Original {
        disk: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d".into(),
        region: "eastus".into(),
        uuid: "1d4a3c4e-6f0b-4d0e-9a43-0a6d51c2a5d1".into(),
        here: "/mnt/echoes_data".into(),
        below: "".into(),
    }
}

fn set(gb: u64, files: u64) -> Dataset {
    Dataset { name: "ucf101".into(), files, bytes: gb * 1_000_000_000 }
}

#[test]
fn how_data_get_there_follows_from_their_size_and_from_where_the_disk_and_the_machines_are() {
    let ssh = Source::parse("ssh://a@b").unwrap();
    let (azure, none) = (Source::Azure, || Err("no managed disk".to_owned()));
    let clone = || Ok(original());
    let of = |source: &Source, asked, set: Dataset, regions: &[&str], found: Result<Original, String>| {
        let regions: Vec<_> = regions.iter().map(ToString::to_string).collect();
        let found = wants_clone(source, asked, set.seconds()).and(found);
        let decided = decide(source, asked, found.and_then(|original| reaches(original, &regions)));
        decided.map(|(way, why)| match way {
            Way::Here => format!("here: {why}"),
            Way::Copy => format!("copy: {why}"),
            Way::Clone(found) => format!("clone of {}", found.region),
        })
    };
    let (small, large, many) = (set(13, 13_320), set(150, 1_300_000), set(2, 200_000));
    let ok = |source: &Source, asked, set: &Dataset, regions: &[&str], found, way: &str| {
        let said = of(source, asked, set.clone(), regions, found).unwrap();
        assert!(said.starts_with(way), "{said}");
    };
    ok(
        &azure,
        DataBy::Auto,
        &small,
        &[],
        clone(),
        "copy: a clone of the data disk is sooner there from 20 GB",
    );
    ok(&azure, DataBy::Auto, &large, &[], clone(), "clone of eastus");
    ok(&azure, DataBy::Auto, &many, &[], clone(), "clone of eastus");
    ok(&azure, DataBy::Auto, &large, &["westus2", "East US"], clone(), "clone of eastus");
    ok(&azure, DataBy::Auto, &large, &["westus2"], clone(), "copy: it is in eastus, and machines are wanted");
    ok(&azure, DataBy::Auto, &large, &[], none(), "copy: no managed disk");
    ok(&azure, DataBy::Copy, &large, &[], clone(), "copy: as asked");
    ok(&azure, DataBy::Clone, &small, &["eastus"], clone(), "clone of eastus");
    ok(&ssh, DataBy::Auto, &large, &[], clone(), "copy: Azure alone clones disks");
    ok(&Source::Local, DataBy::Auto, &large, &[], clone(), "here: this machine reads them where they are");
    // What the settings say is for where there is a choice.
    ok(&ssh, DataBy::Clone, &large, &[], clone(), "copy: ");
    ok(&Source::Local, DataBy::Clone, &large, &[], clone(), "here: ");

    let no = |regions: &[&str], found| of(&azure, DataBy::Clone, set(13, 1), regions, found).unwrap_err();
    assert_eq!(no(&[], none()), "no managed disk");
    assert_eq!(no(&["westus2"], clone()), "it is in eastus, and machines are wanted in westus2");
}

#[test]
fn the_plan_says_how_large_each_is_and_what_that_means() {
    let at = |set: Dataset, way| line(&set, &way, "why");
    assert_eq!(
        at(set(13, 13_320), Way::Copy),
        "data: ucf101, 13.0 GB, 13,320 files: copied, about 2 min 15 s at 96 MB/s or 500 files a second: why"
    );
    // By how many there are, and not by how large they are.
    assert!(at(set(150, 1_300_000), Way::Copy).contains("1,300,000 files: copied, about 43 min 20 s at"));
    assert!(at(set(1000, 7), Way::Copy).contains("1000.0 GB, 7 files: copied, about 2 h 53 min at"));
    assert!(at(set(0, 0), Way::Copy).contains("0.0 GB, 0 files: copied, about 1 s at"));
    assert_eq!(at(set(1, 999), Way::Here), "data: ucf101, 1.0 GB, 999 files: not sent: why");
    let cloned = at(set(13, 13_320), Way::Clone(original()));
    assert!(cloned.contains("cloned in eastus: why; elsewhere copied, about 2 min 15 s"), "{cloned}");
}

#[test]
fn only_what_is_all_on_one_file_system_of_ours_is_cloned() {
    let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 8:32 / /mnt/echoes_data rw - ext4 /dev/sdc rw\n\
                 41 40 0:50 / /mnt/echoes_data/far/deep rw - nfs4 server:/ rw\n42 22 8:48 / /x rw - xfs /dev/sdd rw\n\
                 43 22 8:64 /sub /bound rw - ext4 /dev/sde rw\n";
    let of = |at: &str, name: &str| whole(table, Path::new(at), &[name.to_owned()]);
    assert_eq!(of("/mnt/echoes_data", "ucf101").unwrap().number, "8:32");
    assert!(
        of("/mnt/echoes_data", "far").unwrap_err().contains("/mnt/echoes_data/far/deep is mounted there")
    );
    assert!(of("/x", "ucf101").unwrap_err().contains("/x is on xfs, and ext4 alone is cloned"));
    let where_on_it = |at: &str| below(&of(at, "ucf101").unwrap(), Path::new(at)).display().to_string();
    assert_eq!(where_on_it("/mnt/echoes_data"), "");
    assert_eq!(where_on_it("/mnt/echoes_data/a/b"), "a/b");
    assert_eq!(where_on_it("/bound"), "sub/");
    for (text, is) in
        [("1d4a3c4e-6f0b-4d0e-9a43-0a6d51c2a5d1", true), ("", false), ("1d4a3c4e\nWhat=/dev/sda", false)]
    {
        assert_eq!(is_uuid(text), is, "{text}");
    }
}
