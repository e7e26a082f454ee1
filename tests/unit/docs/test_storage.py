"""The policy in docs/storage.md names every operation that everstep's stores use, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
STORES = ROOT / "trainer_image/src/everstep/catalog/store"
ACTIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_objects": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
}
"""AWS's names of the rights that operations need (Actions, resources, and condition keys for Amazon S3)."""
OPERATION = re.compile(r"_client\.([a-z_0-9]+)|_pages\(\"([a-z_0-9]+)\"")


def operations() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in STORES.glob("*.py")]
    return {first or second for source in sources for first, second in OPERATION.findall(source)}


def test_the_policy_is_what_the_stores_use() -> None:
    page = (ROOT / "docs/storage.md").read_text(encoding="utf-8")
    text = page.partition("<!-- policy: begin -->")[2].partition("<!-- policy: end -->")[0]
    policy = json.loads(text.strip().removeprefix("```json").removesuffix("```"))
    named = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert operations() - ACTIONS.keys() == set()
    assert named == {ACTIONS[operation] for operation in operations()}
