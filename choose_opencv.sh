#!/bin/sh
# Where OpenCV's usual wheel lacks its system libraries, takes the headless build: that version's,
# or the latest before it.
# usage: choose_opencv.sh FOLDER_OF_PYTHON_AND_PIP
set -eu
"$1/python" -c 'import cv2' 2>/dev/null && exit 0
version=$("$1/pip" show opencv-contrib-python | sed -n 's/^Version: //p')
echo "OpenCV's usual build cannot be imported here; taking opencv-contrib-python-headless"
"$1/pip" uninstall --quiet --yes opencv-contrib-python
"$1/pip" install --quiet --disable-pip-version-check \
	"opencv-contrib-python-headless>=5.0,<=$version"
"$1/python" -c 'import cv2'
