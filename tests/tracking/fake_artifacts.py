"""The artifacts of the fake wandb server: collections, versions, aliases, files, and what can go wrong with them.

Names and shapes of requests and answers are those that wandb 0.31 was seen to send and accept.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CREATED = "2025-01-01T00:00:00"
ORGANIZATION = "somebodys-org"


class Refused(Exception):
    """Answered as a GraphQL error, after which the client does not ask again."""


@dataclass
class Version:
    """One version of an artifact. It can be seen once it is committed."""

    id: str
    entity: str
    project: str
    name: str
    kind: str
    index: int
    digest: str
    description: str | None
    metadata: dict[str, Any]
    committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def collection(self) -> tuple[str, str, str]:
        return self.entity, self.project, self.name


class ArtifactStore:
    """Answers the artifact operations; tests may look at what it holds, and set its switches.

    refuse_commits, refuse_files: this many of the next commits, or uploads of files, are errors. corrupt_files: this
    many of the next downloads have a wrong byte. silent_files: uploads and downloads of files get no answer.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self.versions: list[Version] = []
        self.links: dict[tuple[str, str, str], list[str]] = {}  # a registry's collection: the ids of its versions
        self.aliases: dict[tuple[str, str, str], dict[str, str]] = {}  # of a collection: alias to version id
        self.used: list[str] = []
        self.deleted: list[str] = []
        self.refuse_commits = 0
        self.refuse_files = 0
        self.silent_files = False
        self.corrupt_files = 0
        self._url = url
        self._asked_aliases: dict[str, list[str]] = {}  # of versions that are not committed yet
        self._parts: dict[str, bytes] = {}  # what was put, by storage path
        self._lock = threading.RLock()

    # ---- for tests -------------------------------------------------------------------------------------------

    def find(self, name: str, alias: str) -> Version:
        """The committed version of a collection, of whatever project, that the alias or `vN` points to."""
        for collection in {version.collection for version in self.versions} | set(self.links):
            if collection[2] == name and (version := self._resolve(collection, alias)) is not None:
                return version
        raise KeyError(f"{name}:{alias}")

    def names(self, name: str) -> dict[str, list[str]]:
        """{version: its aliases} of a collection, oldest first."""
        return {
            f"v{v.index}": sorted(self._aliases_of(v.collection, v.id))
            for v in self.versions
            if v.name == name and v.committed
        }

    def digest_with_xxh128(self, version: Version) -> None:
        """Make a version's manifest one of the other kind that servers have."""
        import xxhash

        for name, entry in version.manifest["contents"].items():
            entry["digest"] = base64.b64encode(xxhash.xxh128(version.files[name]).digest()).decode()
            entry["extra"] = {"alg": "XXH128"}
        self._parts[f"{version.id}/manifest.json"] = json.dumps(version.manifest).encode()

    def rename_file(self, version: Version, name: str, other: str, **entry: Any) -> None:
        """Let a version's manifest rename a file, or misstate its facts, as any owner of an artifact can."""
        version.manifest["contents"][other] = version.manifest["contents"].pop(name) | entry
        version.files[other] = version.files.pop(name)
        self._parts[f"{version.id}/manifest.json"] = json.dumps(version.manifest).encode()

    # ---- questions -------------------------------------------------------------------------------------------

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to an artifact operation; None for one of another kind. Raises Refused."""
        handler = getattr(self, f"_do_{operation}", None)
        if handler is None:
            return None
        with self._lock:
            result: dict[str, Any] = handler(variables)
            return result

    def _do_ArtifactType(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"].partition(":")[0]
        for version in self.versions:
            if version.collection == (asked["entity"], asked["project"], name):
                return {"project": {"artifact": {"artifactType": {"name": version.kind}}}}
        return {"project": {"artifact": None}}

    def _do_CreateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        collection = (given["entityName"], given["projectName"], given["artifactCollectionName"])
        names = [alias["alias"] for alias in given.get("aliases") or []]
        same = next(
            (v for v in self.versions if v.collection == collection and v.committed and v.digest == given["digest"]),
            None,
        )
        latest = self.aliases.get(collection, {}).get("latest")
        if same is None:
            number = sum(1 for v in self.versions if v.collection == collection)
            number += sum(1 for gone in self.deleted if gone.startswith("/".join(collection) + ":"))
            same = Version(
                id=f"artifact-{len(self.versions) + len(self.deleted)}",
                entity=collection[0],
                project=collection[1],
                name=collection[2],
                kind=given["artifactTypeName"],
                index=number,
                digest=given["digest"],
                description=given.get("description"),
                metadata=json.loads(given.get("metadata") or "{}"),
            )
            self.versions.append(same)
            self._asked_aliases[same.id] = names
        else:
            self._move(collection, names, same.id)
        before = {"id": latest} if latest else None
        state = "COMMITTED" if same.committed else "PENDING"
        return {
            "createArtifact": {
                "artifact": {"id": same.id, "state": state, "artifactSequence": {"latestArtifact": before}}
            }
        }

    def _do_CreateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "file", "uploadUrl": None, "uploadHeaders": []}
        if asked["includeUpload"]:
            file["uploadUrl"] = f"{self._url()}/storage/{asked['artifactID']}/manifest.json"
        return {"createArtifactManifest": {"artifactManifest": {"id": asked["artifactID"], "file": file}}}

    def _do_UpdateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        artifact = asked["artifactManifestID"]
        file = {"id": "file", "uploadUrl": f"{self._url()}/storage/{artifact}/manifest.json", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": artifact, "file": file}}}

    def _do_CreateArtifactFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for spec in asked["input"]["artifactFiles"]:
            path = f"{spec['artifactID']}/files/{spec['name']}"
            nodes.append(
                {
                    "storagePath": path,
                    "uploadUrl": f"{self._url()}/storage/{path}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": spec["artifactID"]},
                }
            )
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _do_CommitArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_commits:
            self.refuse_commits -= 1
            raise Refused("the commit is refused")
        version = self._by_id(asked["artifactID"])
        version.manifest = json.loads(self._parts[f"{version.id}/manifest.json"])
        for name in version.manifest["contents"]:
            version.files[name] = self._parts[f"{version.id}/files/{name}"]
        version.committed = True
        self._move(version.collection, self._asked_aliases.pop(version.id), version.id)
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _do_ArtifactByID(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._describe(self._by_id(asked["id"]))}

    def _do_ArtifactMembershipByName(self, asked: dict[str, Any]) -> dict[str, Any]:
        name, _, alias = asked["name"].partition(":")
        collection = (asked["entity"], asked["project"], name)
        if not any(collection[:2] == known[:2] for known in self._collections()):
            return {"project": None}
        version = self._resolve(collection, alias or "latest")
        membership = self._membership(collection, version) if version else None
        return {"project": {"artifactCollectionMembership": membership}}

    def _do_ArtifactMembershipFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        version = self._resolve((asked["entity"], asked["project"], asked["collection"]), asked["alias"])
        assert version is not None
        nodes = [
            {
                "__typename": "File",
                "id": name,
                "name": name,
                "url": None,
                "sizeBytes": len(data),
                "storagePath": None,
                "mimetype": None,
                "updatedAt": CREATED,
                "digest": None,
                "md5": None,
                "directUrl": f"{self._url()}/storage/{version.id}/files/{name}",
            }
            for name, data in version.files.items()
            if asked.get("fileNames") is None or name in asked["fileNames"]
        ]
        files = {"totalCount": len(nodes), "pageInfo": _last_page(), "edges": [{"node": node} for node in nodes]}
        membership = {"files": files}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": membership}}}

    def _do_FetchLinkedArtifacts(self, asked: dict[str, Any]) -> dict[str, Any]:
        version = self._by_id(asked["artifactID"])
        nodes = []
        for collection in self._collections():
            for index, member in self._members(collection):
                if member is version:
                    names = [_alias(alias) for alias in self._aliases_of(collection, version.id)]
                    info = self._info(collection)
                    nodes.append(
                        {"aliases": names, "versionIndex": index, "artifactCollection": info, "createdAt": CREATED}
                    )
        return {"artifact": {"artifactMemberships": {"edges": [{"node": node} for node in nodes]}}}

    def _do_FetchArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._url()}/storage/{asked['id']}/manifest.json"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _do_ProjectArtifacts(self, asked: dict[str, Any]) -> dict[str, Any]:
        collection = (asked["entity"], asked["project"], asked["collection"])
        members = list(self._members(collection))
        if not members:
            return {"project": {"artifactType": {"artifactCollection": None}}}
        edges = [{"version": f"v{index}", "node": self._describe(v)} for index, v in reversed(members)]
        artifacts = {"totalCount": len(edges), "pageInfo": _last_page(), "edges": edges}
        found = {"__typename": "ArtifactSequence", "artifacts": artifacts}
        return {"project": {"artifactType": {"artifactCollection": found}}}

    def _do_ProjectArtifactType(self, asked: dict[str, Any]) -> dict[str, Any]:
        kind = {"__typename": "ArtifactType", "id": "type", "name": asked["type"], "description": None}
        return {"project": {"artifactType": {**kind, "createdAt": CREATED}}}

    def _do_ProjectArtifactCollection(self, asked: dict[str, Any]) -> dict[str, Any]:
        collection = (asked["entity"], asked["project"], asked["name"])
        found = self._collection(collection) if collection in self._collections() else None
        return {"project": {"artifactType": {"artifactCollection": found}}}

    def _do_ArtifactTypeArtifactCollections(self, asked: dict[str, Any]) -> dict[str, Any]:
        place = (asked["entity"], asked["project"])
        found = [self._collection(c) for c in self._collections() if c[:2] == place]
        found = [collection for collection in found if collection["type"]["name"] == asked["type"]]
        edges = [{"node": node} for node in found]
        connection = {"totalCount": len(edges), "pageInfo": _last_page(), "edges": edges}
        return {"project": {"artifactType": {"artifactCollections": connection}}}

    def _do_FetchOrgInfoFromEntity(self, asked: dict[str, Any]) -> dict[str, Any]:
        organization = {"name": ORGANIZATION, "orgEntity": {"name": ORGANIZATION}}
        return {"entity": {"organization": organization, "user": None}}

    # ---- changes ---------------------------------------------------------------------------------------------

    def _do_UseArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        id = asked.get("input", asked)["artifactID"]  # the client has two forms of this question
        self.used.append(id)
        return {"useArtifact": {"artifact": {"id": id}}}

    def _do_AddAliases(self, asked: dict[str, Any]) -> dict[str, Any]:
        for alias in asked["input"]["aliases"]:
            self._move(_collection_of(alias), [alias["alias"]], asked["input"]["artifactID"])
        return {"result": {"success": True}}

    def _do_DeleteAliases(self, asked: dict[str, Any]) -> dict[str, Any]:
        for alias in asked["input"]["aliases"]:
            self.aliases[_collection_of(alias)].pop(alias["alias"], None)
        return {"result": {"success": True}}

    def _do_UpdateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        version = self._by_id(asked["input"]["artifactID"])
        version.description = asked["input"].get("description")
        if (metadata := asked["input"].get("metadata")) is not None:
            version.metadata = json.loads(metadata)
        return {"result": {"artifact": self._describe(version)}}

    def _do_LinkArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        version = self._by_id(given["artifactID"])
        collection = (given["entityName"], given["projectName"], given["artifactPortfolioName"])
        linked = self.links.setdefault(collection, [])
        if version.id not in linked:
            linked.append(version.id)
        self._move(collection, ["latest", *(alias["alias"] for alias in given["aliases"])], version.id)
        membership = self._membership(collection, version)
        return {"result": {"versionIndex": linked.index(version.id), "artifactMembership": membership}}

    def _do_UnlinkArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        id, place = asked["input"]["artifactID"], asked["input"]["artifactPortfolioID"]
        collection = next(known for known in self.links if "/".join(known) == place)
        for alias in self._aliases_of(collection, id):
            del self.aliases[collection][alias]
        self.links[collection][self.links[collection].index(id)] = ""  # its number stays taken
        return {"result": {"success": True}}

    def _do_DeleteArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        version = self._by_id(asked["input"]["artifactID"])
        held = self._aliases_of(version.collection, version.id)
        if held and not asked["input"].get("deleteAliases"):
            raise Refused(f"the artifact has the aliases {held}")
        for alias in held:
            del self.aliases[version.collection][alias]
        self.versions.remove(version)
        self.deleted.append("/".join(version.collection) + f":v{version.index}")
        return {"result": {"artifact": {"id": version.id}}}

    # ---- files -----------------------------------------------------------------------------------------------

    def put(self, path: str, data: bytes) -> int:
        """Keep an uploaded file; returns the HTTP status."""
        with self._lock:
            if self.refuse_files and "/files/" in path:
                self.refuse_files -= 1
                return 403
            self._parts[path] = data
            return 200

    def get(self, path: str) -> bytes | None:
        with self._lock:
            data = self._parts.get(path)
            if data and self.corrupt_files and "/files/" in path:
                self.corrupt_files -= 1
                return bytes([data[0] ^ 1]) + data[1:]
            return data

    # ---- small parts -----------------------------------------------------------------------------------------

    def _by_id(self, id: str) -> Version:
        return next(version for version in self.versions if version.id == id)

    def _collections(self) -> list[tuple[str, str, str]]:
        return list(dict.fromkeys([*(v.collection for v in self.versions if v.committed), *self.links]))

    def _members(self, collection: tuple[str, str, str]) -> Iterator[tuple[int, Version]]:
        if collection in self.links:
            yield from ((index, self._by_id(id)) for index, id in enumerate(self.links[collection]) if id)
        else:
            yield from ((v.index, v) for v in self.versions if v.collection == collection and v.committed)

    def _resolve(self, collection: tuple[str, str, str], alias: str) -> Version | None:
        held = self.aliases.get(collection, {}).get(alias)
        for index, version in self._members(collection):
            if version.id == held or alias == f"v{index}":
                return version
        return None

    def _move(self, collection: tuple[str, str, str], aliases: list[str], id: str) -> None:
        for alias in aliases:
            self.aliases.setdefault(collection, {})[alias] = id

    def _aliases_of(self, collection: tuple[str, str, str], id: str) -> list[str]:
        return [alias for alias, held in self.aliases.get(collection, {}).items() if held == id]

    def _info(self, collection: tuple[str, str, str]) -> dict[str, Any]:
        entity, project, name = collection
        where = {"id": project, "internalId": project, "name": project, "entity": {"name": entity}}
        kind = "ArtifactPortfolio" if collection in self.links else "ArtifactSequence"
        return {"__typename": kind, "name": name, "project": where}

    def _collection(self, collection: tuple[str, str, str]) -> dict[str, Any]:
        kind = next(version.kind for _, version in self._members(collection))
        times = {"createdAt": CREATED, "updatedAt": CREATED}
        rest = {"id": "/".join(collection), "description": None, "type": {"name": kind}, "tags": {"edges": []}}
        return {**self._info(collection), **times, **rest}

    def _membership(self, collection: tuple[str, str, str], version: Version) -> dict[str, Any]:
        index = next(index for index, member in self._members(collection) if member is version)
        aliases = [*self._aliases_of(collection, version.id), f"v{index}"]
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"{'/'.join(collection)}/{index}",
            "versionIndex": index,
            "createdAt": CREATED,
            "aliases": [_alias(alias) for alias in aliases],
            "artifactCollection": self._info(collection),
            "artifact": self._describe(version),
        }

    def _describe(self, version: Version) -> dict[str, Any]:
        aliases = [
            {**_alias(alias), "artifactCollection": self._info(collection)}
            for collection in self._collections()
            for alias in self._aliases_of(collection, version.id)
        ]
        return {
            "__typename": "Artifact",
            "id": version.id,
            "artifactSequence": self._info(version.collection),
            "versionIndex": version.index,
            "artifactType": {"name": version.kind},
            "description": version.description,
            "metadata": json.dumps(version.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED" if version.committed else "PENDING",
            "size": sum(entry["size"] for entry in version.manifest.get("contents", {}).values()),
            "digest": version.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": version.id,
            "fileCount": len(version.files),
            "createdAt": CREATED,
            "updatedAt": CREATED,
            "aliases": aliases,
        }


def _last_page() -> dict[str, Any]:
    return {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


def _alias(alias: str) -> dict[str, Any]:
    return {"__typename": "ArtifactAlias", "id": alias, "alias": alias}


def _collection_of(alias: dict[str, str]) -> tuple[str, str, str]:
    return alias["entityName"], alias["projectName"], alias["artifactCollectionName"]
