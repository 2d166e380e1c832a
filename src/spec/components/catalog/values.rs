//! Plain values, parts of them, and other projects.

use crate::components::Kind::{List, Mapping, Path, Text};
use crate::components::{Component, Kind, Others, Role, optional, required};

pub const COMPONENTS: &[Component] = &[
    Component::new(
        "from_project",
        &["forgather:from_project", "forgather.project:from_project"],
        Role::Value,
        "Targets of another project, rendered with variables of its own.",
        &[
            required("project_dir", Path, "the other project's folder"),
            optional("config_template", Text, "null", "its configuration, if not the default one"),
            optional("targets", List, "[]", "the targets that are taken from it"),
            optional("pp_kwargs", Mapping, "{}", "template variables that it is rendered with"),
        ],
    )
    .others(Others::Keywords(
        "values of the other project's variables: `tokenizer`, `preprocess_args`, …",
    )),
    Component::new(
        "getitem",
        &["operator:getitem"],
        Role::Value,
        "One item of a mapping, a list, a set of splits or another project's targets.",
        &[
            required("container", Kind::Any, "what the item is taken of"),
            required("key", Kind::Any, "its name, or its number from 0"),
        ],
    ),
    Component::new(
        "named_list",
        &["list"],
        Role::Value,
        "A list: the tags `!list` and `!dlist`.",
        &[],
    )
    .others(Others::Any("the items")),
    Component::new("named_tuple", &["tuple"], Role::Value, "A list too: the tag `!tuple`.", &[])
        .others(Others::Any("the items")),
    Component::new("named_dict", &["dict"], Role::Value, "A mapping: the tag `!dict`.", &[])
        .others(Others::Any("the entries")),
];
