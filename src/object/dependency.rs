//! `dependsOn` among the VMs of a namespace: nobody may wait for itself, however long the way.

use std::collections::HashMap;

/// The VMs that one VM may wait for, directly and through others: a bound on the search.
const MAX_REACH: usize = 1000;

/// What is wrong with what a VM depends on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DependencyError {
    /// It would wait for itself.
    #[error("spec.dependsOn makes a circle: {}; remove one of these dependencies", path(.0))]
    Cycle(
        /// The names on the way, from the VM back to itself.
        Vec<String>,
    ),
    /// It waits for too many.
    #[error(
        "spec.dependsOn leads to more than {MAX_REACH} VMs, directly and through others; remove some of them"
    )]
    TooMany,
}

impl DependencyError {
    /// One CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            DependencyError::Cycle(_) => "DependencyCycle",
            DependencyError::TooMany => "TooManyDependencies",
        }
    }
}

/// `vm/a → vm/b → vm/a`
fn path(names: &[String]) -> String {
    names.iter().map(|name| format!("vm/{name}")).collect::<Vec<_>>().join(" → ")
}

/// Follows `dependsOn` from one VM on; `of` gives a VM's dependencies, none if there is no such VM.
///
/// # Errors
/// What is wrong, see [`DependencyError`].
pub fn check_dependencies(vm: &str, of: impl Fn(&str) -> Vec<String>) -> Result<(), DependencyError> {
    // Each VM that was reached, and from where.
    let mut reached: HashMap<String, String> = HashMap::new();
    let mut open = vec![vm.to_owned()];
    while let Some(name) = open.pop() {
        for next in of(&name) {
            if next == vm {
                return Err(DependencyError::Cycle(way_back(vm, name, &reached)));
            }
            if !reached.contains_key(&next) {
                reached.insert(next.clone(), name.clone());
                open.push(next);
            }
        }
        if reached.len() > MAX_REACH {
            return Err(DependencyError::TooMany);
        }
    }
    Ok(())
}

fn way_back(vm: &str, last: String, reached: &HashMap<String, String>) -> Vec<String> {
    let mut names = vec![vm.to_owned()];
    let mut name = last;
    while name != vm {
        let from = reached[&name].clone();
        names.push(std::mem::replace(&mut name, from));
    }
    names.push(vm.to_owned());
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vm: &str, edges: &[(&str, &str)]) -> Result<(), DependencyError> {
        check_dependencies(vm, |name| {
            edges.iter().filter(|(from, _)| *from == name).map(|(_, to)| (*to).to_owned()).collect()
        })
    }

    #[test]
    fn a_circle_is_found_and_its_way_told() {
        let edges = [("a", "x"), ("a", "b"), ("b", "c"), ("c", "a"), ("x", "y")];
        let found = check("a", &edges).unwrap_err();
        assert_eq!(
            found.to_string(),
            "spec.dependsOn makes a circle: vm/a → vm/b → vm/c → vm/a; remove one of these dependencies"
        );
        assert_eq!(check("a", &edges[..3]), Ok(()));
        assert_eq!(
            check("a", &[("a", "b"), ("b", "c"), ("c", "b")]),
            Ok(()),
            "a circle that it is not part of"
        );
    }

    #[test]
    fn the_search_is_bounded() {
        let chain = |name: &str| vec![format!("{}", name.parse::<u32>().unwrap() + 1)];
        assert_eq!(check_dependencies("0", chain), Err(DependencyError::TooMany));
    }
}
