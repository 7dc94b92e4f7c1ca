#!/usr/bin/env bash
# Downloads the public data sets: resumes what was cut off, checks every size, unpacks, and skips what is already there.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash download_data.sh [--dir DIR] [--dry-run] [--keep-archives] SET...

sets   vqav2           VQAv2 train and val with COCO's pictures     about 20 GB   -> DIR/vqav2
       vqav2-test      VQAv2 test questions with COCO's pictures    about 13 GB   -> DIR/vqav2
       screenspot      rootsautomation/ScreenSpot (parquet)         about 0.6 GB  -> DIR/screenspot
       screenspot-v2   OS-Copilot/ScreenSpot-v2 (JSON, pictures)    about 1.3 GB  -> DIR/screenspot-v2
       screenspot-pro  likaixin/ScreenSpot-Pro (JSON, pictures)                   -> DIR/screenspot-pro
       ok-vqa textvqa docvqa infovqa chartqa vqa-rad slake pathvqa ai2d scienceqa mmmu mathvista geo3k
       refcoco refcoco+ refcocog osworld-g ui-vision mmbench-gui-l2 venusbench-gd
                                                                    the hub's files -> DIR/SET
       ms-cxr, vindr-cxr   need an account: prints how to get them

  --dir DIR         where to put them (default: data)
  --dry-run         print what would be fetched and how much disk it needs; fetch nothing
  --keep-archives   keep the zip files after unpacking

environment  VQA_URL, COCO_URL, HF_ENDPOINT  other servers with the same paths
             ATTEMPTS                        tries per file (default 5); each goes on where the last one stopped
exit codes   0 all there, 1 a download failed (run it again to go on), 2 usage, not enough disk, or an account is needed
TEXT
}

VQA_URL=${VQA_URL:-https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa}
COCO_URL=${COCO_URL:-http://images.cocodataset.org/zips}
HF_ENDPOINT=${HF_ENDPOINT:-https://huggingface.co}
ATTEMPTS=${ATTEMPTS:-5}

dir=data dry_run=0 keep_archives=0
to_fetch=0 plain=0 archives=0 largest_archive=0 unknown=0

fail() { echo "error: $1" >&2; exit "${2:-1}"; }
human() { awk -v n="$1" 'BEGIN { split("B KB MB GB TB", u, " "); i = 1; while (n >= 1000 && i < 5) { n /= 1000; i++ } printf (i == 1 ? "%d %s" : "%.1f %s"), n, u[i] }'; }
size_of() { if [[ -f $1 ]]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

asking() { ((!dry_run)) || echo "asking $1 for files and their sizes" >&2; }

# Bytes of the file behind an address (after redirects), or nothing where the server does not say.
remote_size() {
    local headers
    headers=$(curl -fsIL --max-time 60 "$1" 2>/dev/null) || return 0
    tr -d '\r' <<<"$headers" | awk 'tolower($1) == "content-length:" { size = $2 } END { print size }'
}

# Sizes of the large files as published, for a dry run without network.
published_size() {
    case ${1##*/} in
        v2_Questions_Train_mscoco.zip) echo 7239401 ;;
        v2_Questions_Val_mscoco.zip) echo 3494929 ;;
        v2_Annotations_Train_mscoco.zip) echo 21708861 ;;
        v2_Annotations_Val_mscoco.zip) echo 10518930 ;;
        train2014.zip) echo 13510573713 ;;
        val2014.zip) echo 6645013297 ;;
        test2015.zip) echo 13000000000 ;;
        screenspotv2_image.zip) echo 1330000000 ;;
    esac
}

# fetch URL PATH [SIZE]: PATH appears only when it is complete; until then it grows as PATH.part.
fetch() {
    local url=$1 path=$2 size=${3:-} attempt
    [[ -n $size ]] || size=$(remote_size "$url")
    if [[ -f $path && (-z $size || $(size_of "$path") == "$size") ]]; then
        echo "have   $path"
        return
    fi
    if ((dry_run)); then
        plan "$url" "$path" "$size"
        return
    fi
    mkdir -p "$(dirname "$path")"
    for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
        if [[ -n $size ]] && (($(size_of "$path.part") > size)); then rm -f "$path.part"; fi
        if [[ -n $size && -f $path.part && $(size_of "$path.part") == "$size" ]]; then break; fi
        echo "fetch  $url${size:+ ($(human "$size"), have $(human "$(size_of "$path.part")"))}"
        if curl -fL --connect-timeout 30 --speed-limit 1 --speed-time 60 -C - $([[ -t 2 ]] || echo -sS) -o "$path.part" "$url"; then
            break
        elif (($? == 33)); then # the server cannot resume: start over
            rm -f "$path.part"
        fi
        ((attempt == ATTEMPTS)) || sleep "$((attempt < 5 ? attempt : 5))"
    done
    [[ -f $path.part ]] || fail "cannot fetch $url; check the network and run this again"
    if [[ -n $size && $(size_of "$path.part") != "$size" ]]; then
        fail "$path.part has $(size_of "$path.part") of $size bytes; run this again to go on from there"
    fi
    mv "$path.part" "$path"
}

plan() {
    local url=$1 path=$2 size=$3 left
    [[ -n $size ]] || size=$(published_size "$url")
    if [[ -z $size ]]; then
        unknown=1
        echo "fetch  $url -> $path (size unknown: the server does not answer)"
        return
    fi
    left=$((size - $(size_of "$path.part")))
    echo "fetch  $url -> $path ($(human "$size")$( ((left == size)) || echo ", $(human "$left") left"))"
    to_fetch=$((to_fetch + left))
    if [[ $path == *.zip ]]; then
        # Unpacked, pictures take as much again; VQAv2's JSON files take up to twenty times as much.
        case $path in */v2_*) archives=$((archives + 20 * size)) ;; *) archives=$((archives + size)) ;; esac
        ((size <= largest_archive)) || largest_archive=$size
    else
        plain=$((plain + left))
    fi
}

# archive URL DIRECTORY [SIZE]: fetch a zip file and unpack it there, once; a cut-off unpacking starts over.
archive() {
    local url=$1 target=$2 size=${3:-} name=${1##*/} work
    if [[ -f $target/.$name.unpacked ]]; then
        echo "have   $target (from $name)"
        return
    fi
    fetch "$url" "$target/$name" "$size"
    ((dry_run)) && return
    work=$target/.$name.unpacking
    rm -rf "$work"
    mkdir -p "$work"
    echo "unpack $target/$name"
    if ! unzip -q "$target/$name" -d "$work"; then
        rm -rf "$work" "$target/$name"
        fail "$target/$name is damaged and was removed; run this again"
    fi
    for entry in "$work"/*; do
        [[ ${entry##*/} != __MACOSX ]] || continue
        rm -rf "${target:?}/${entry##*/}"
        mv "$entry" "$target/"
    done
    rm -rf "$work"
    touch "$target/.$name.unpacked"
    ((keep_archives)) || rm -f "$target/$name"
}

# hf REPOSITORY DIRECTORY PATTERN: the files of a Hugging Face data set whose path matches; sizes come from its listing.
hf() {
    local repository=$1 target=$2 pattern=$3 page headers path size
    local next="$HF_ENDPOINT/api/datasets/$repository/tree/main?recursive=true"
    asking "$HF_ENDPOINT/datasets/$repository"
    headers=$(mktemp)
    page=$(mktemp)
    # shellcheck disable=SC2064
    trap "rm -f '$headers' '$page'" EXIT
    while [[ -n $next ]]; do
        if ! curl -fsSL --max-time 60 --retry "$((dry_run ? 0 : 3))" -D "$headers" -o "$page" "$next" 2>/dev/null; then
            ((dry_run)) || fail "cannot list $next; check the network and run this again"
            unknown=1
            echo "fetch  $HF_ENDPOINT/datasets/$repository -> $target (size unknown: the server does not answer)"
            return
        fi
        while IFS=$'\t' read -r size path quoted; do
            if [[ $path == *.zip ]]; then
                archive "$HF_ENDPOINT/datasets/$repository/resolve/main/$quoted" "$target" "$size"
            else
                fetch "$HF_ENDPOINT/datasets/$repository/resolve/main/$quoted" "$target/$path" "$size"
            fi
        done < <(python3 -c '
import json, re, sys, urllib.parse
for item in json.load(open(sys.argv[1])):
    if item["type"] == "file" and re.fullmatch(sys.argv[2], item["path"]) and ".." not in item["path"].split("/"):
        print(item["size"], item["path"], urllib.parse.quote(item["path"]), sep="\t")
' "$page" "$pattern")
        next=$(tr -d '\r' <"$headers" | sed -n 's/^[Ll]ink: *<\([^>]*\)>; *rel="next".*/\1/p')
    done
}

account() {
    case $1 in
        ms-cxr) cat >&2 <<'TEXT'
MS-CXR needs a credentialed PhysioNet account (training course and signed agreement), and its pictures are those of
MIMIC-CXR-JPG, which needs the same. After approval:
  wget -r -N -c -np --user NAME --ask-password https://physionet.org/files/ms-cxr/
  python data_utils.py convert ms-cxr --input MS_CXR_Local_Alignment_v1.1.0.csv --image-dir MIMIC_CXR_JPG \
      --output data/ms_cxr.parquet
TEXT
            ;;
        vindr-cxr) cat >&2 <<'TEXT'
VinDr-CXR needs a PhysioNet account with a signed agreement (https://physionet.org/content/vindr-cxr/), or a Kaggle
account (vinbigdata-chest-xray-abnormalities-detection). Its pictures are DICOM: export them to PNG first. Then:
  python data_utils.py convert vindr-cxr --input train.csv --image-dir PNG_DIRECTORY --output data/vindr_cxr.parquet
TEXT
            ;;
    esac
    exit 2
}

get() {
    local name
    case $1 in
        vqav2)
            asking "$VQA_URL and $COCO_URL"
            for name in Questions_Train Questions_Val Annotations_Train Annotations_Val; do
                archive "$VQA_URL/v2_${name}_mscoco.zip" "$dir/vqav2"
            done
            archive "$COCO_URL/train2014.zip" "$dir/vqav2/images"
            archive "$COCO_URL/val2014.zip" "$dir/vqav2/images"
            ;;
        vqav2-test)
            asking "$VQA_URL and $COCO_URL"
            archive "$VQA_URL/v2_Questions_Test_mscoco.zip" "$dir/vqav2"
            archive "$COCO_URL/test2015.zip" "$dir/vqav2/images"
            ;;
        screenspot) hf rootsautomation/ScreenSpot "$dir/screenspot" 'data/.*\.parquet' ;;
        screenspot-v2) hf OS-Copilot/ScreenSpot-v2 "$dir/screenspot-v2" '.*\.(json|zip)' ;;
        screenspot-pro) hf likaixin/ScreenSpot-Pro "$dir/screenspot-pro" '(annotations|images)/.*\.(json|png)' ;;
        ok-vqa) hf lmms-lab/OK-VQA "$dir/$1" 'data/.*\.parquet' ;;
        textvqa) hf lmms-lab/textvqa "$dir/$1" 'data/.*\.parquet' ;;
        docvqa) hf lmms-lab/DocVQA "$dir/$1" 'DocVQA/.*\.parquet' ;;
        infovqa) hf lmms-lab/DocVQA "$dir/$1" 'InfographicVQA/.*\.parquet' ;;
        chartqa) hf HuggingFaceM4/ChartQA "$dir/$1" 'data/.*\.parquet' ;;
        vqa-rad) hf flaviagiammarino/vqa-rad "$dir/$1" 'data/.*\.parquet' ;;
        slake) hf BoKelvin/SLAKE "$dir/$1" '(train|validation|test)\.json|imgs\.zip' ;;
        pathvqa) hf flaviagiammarino/path-vqa "$dir/$1" 'data/.*\.parquet' ;;
        ai2d) hf lmms-lab/ai2d "$dir/$1" 'data/.*\.parquet' ;;
        scienceqa) hf lmms-lab/ScienceQA "$dir/$1" 'ScienceQA-IMG/.*\.parquet' ;;
        mmmu) hf lmms-lab/MMMU "$dir/$1" 'data/.*\.parquet' ;;
        mathvista) hf AI4Math/MathVista "$dir/$1" 'data/.*\.parquet' ;;
        geo3k) hf hiyouga/geometry3k "$dir/$1" 'data/.*\.parquet' ;;
        refcoco) hf lmms-lab/RefCOCO "$dir/$1" 'data/.*\.parquet' ;;
        refcoco+) hf lmms-lab/RefCOCOplus "$dir/$1" 'data/.*\.parquet' ;;
        refcocog) hf lmms-lab/RefCOCOg "$dir/$1" 'data/.*\.parquet' ;;
        osworld-g) hf MMInstruction/OSWorld-G "$dir/$1" '.*\.(json|parquet|zip)' ;;
        ui-vision) hf ServiceNow/ui-vision "$dir/$1" '(annotations/element_grounding|images)/.*\.(json|png)' ;;
        mmbench-gui-l2) hf OpenGVLab/MMBench-GUI "$dir/$1" 'L2_annotations\.json|MMBench-GUI-OfflineImages\.zip' ;;
        venusbench-gd) hf inclusionAI/VenusBench-GD "$dir/$1" '(instruction|images)/.*\.(json|png|jpe?g)' ;;
        ms-cxr | vindr-cxr) account "$1" ;;
        *) fail "unknown set $1; bash download_data.sh --help lists them" 2 ;;
    esac
}

sets=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dir) [[ $# -ge 2 ]] || fail "--dir needs a directory" 2; dir=$2; shift ;;
        --dry-run) dry_run=1 ;;
        --keep-archives) keep_archives=1 ;;
        -*) fail "unknown option $1; bash download_data.sh --help lists them" 2 ;;
        *) sets+=("$1") ;;
    esac
    shift
done
((${#sets[@]})) || fail "name one set or more; bash download_data.sh --help lists them" 2
for tool in curl unzip python3; do
    command -v "$tool" >/dev/null || fail "$tool is not installed; install it first (apt-get install curl unzip python3)" 2
done

free_bytes() {
    local at=$1
    while [[ ! -d $at ]]; do at=$(dirname "$at"); done
    df -Pk "$at" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'
}

# The plan is always made, so that a download that cannot fit does not begin.
wanted_dry_run=$dry_run
dry_run=1
for name in "${sets[@]}"; do
    if ((wanted_dry_run)); then get "$name"; else get "$name" >/dev/null; fi
done
needed=$((plain + archives + (keep_archives ? archives : largest_archive)))
free=$(free_bytes "$dir")
dry_run=$wanted_dry_run
if ((dry_run)); then
    ((unknown)) && note=" and what is of unknown size" || note=""
    echo "to fetch: $(human "$to_fetch")$note; disk needed: $(human "$needed")$note; free in $dir: $(human "$free")"
    exit 0
fi
((needed <= free)) || fail "$dir needs $(human "$needed") and has $(human "$free"); choose another --dir" 2
for name in "${sets[@]}"; do get "$name"; done
